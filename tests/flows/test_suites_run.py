"""Suites from a plan to a verdict on tiny models: what is measured, what is kept, and what a change rebuilds."""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pyarrow.parquet as pq
import pytest
import tiny
import yaml

from evals import suite
from flows.loading import load
from flows.suites import measured
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import DataError
from tasks.core.store import Store
from tasks.judge import VERDICT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
DEMO = Path(__file__).parents[2] / "flows" / "plans" / "demo.yaml"
FOLLOW = [
    {"key": i, "prompt": f"Say {words}.", "instruction_id_list": kinds, "kwargs": [{} for _ in kinds]}
    for i, (words, kinds) in enumerate(
        zip(tiny.sentences(6), [["punctuation:no_comma"], ["punctuation:no_comma", "startend:quotation"]] * 3, strict=True)
    )
]
CHOOSE = [
    {"query": f"{asked}, therefore", "choices": [good, f"{good} {bad}"], "gold": i % 2}
    for i, (asked, good, bad) in enumerate(zip(tiny.sentences(8, 1), tiny.sentences(8, 2), tiny.sentences(8, 3), strict=True))
]
GATES = [
    {"metric": "ifeval.prompt_strict", "at_least": 0.0},
    {"metric": "ifeval.instruction_loose", "at_least": -1.0, "against": "parent"},
    {"metric": "copa.accuracy_normalised", "at_least": -1.0, "against": "parent"},
]


@dataclass
class Direct:
    """Builds in this process, torch and all; forgets between plans what it built, but not the store."""

    workshop: Workshop
    built: list[str] = field(default_factory=list)
    made: dict = field(default_factory=dict)

    def __call__(self, stage, spec, inputs, *, name=None):
        artifact, built = self.workshop.build(stage, spec, inputs)
        self.built += [name or stage.name] if built else []
        self.made[name or stage.name] = artifact
        return artifact


@dataclass
class Bench:
    folder: Path
    workshop: Workshop
    models: dict

    def plan(self, *overrides):
        suites = [
            {"name": "ifeval", "source": str(self.folder / "ifeval.jsonl"), "answers": {"max_new_tokens": 8, "temperature": 1.0}},
            {"name": "copa", "source": str(self.folder / "copa.jsonl"), "limit": 6},
        ]
        return load(DEMO, [f"evaluation.suites={json.dumps(suites)}", f"gates={json.dumps(GATES)}", *overrides])

    def judge(self, *overrides):
        """What was built, and the verdict, under the plan with `overrides`."""
        plan, build = self.plan(*overrides), Direct(self.workshop)
        found = measured(plan, build, self.models)
        verdict = build(VERDICT, plan.judge(), found.scores)
        return build, json.loads((verdict.path / "verdict.json").read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.base.run_child", lambda job, *given: import_module(f"tasks.training.{job}").run(*given))
        root = tmp_path_factory.mktemp("suites")
        shutil.copytree(suite.FOLDER, root / "data")
        patch.setattr("evals.suite.FOLDER", root / "data")
        for name, rows in (("ifeval", FOLLOW), ("copa", CHOOSE)):
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        models = {
            who: tiny.write_policy(root / who, root / "models", tiny.write_model(root / f"{who}-source", seed=seed), who)
            for who, seed in (("candidate", 1), ("parent", 0))
        }
        yield Bench(root, Workshop(Store(root / "store"), root / "models", Execution(device="cpu")), models)


def rewritten(bench, name, **fields):
    path = bench.folder / "data" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))


def test_two_suites_go_from_a_plan_to_a_verdict_and_only_what_changed_is_built_again(bench):
    first, verdict = bench.judge()
    scored = ["ifeval-candidate", "ifeval-parent"]
    answered = ["answers-ifeval-candidate", "answers-ifeval-parent"]
    assert first.built == ["suite-ifeval", *answered, *scored, "suite-copa", "copa-candidate", "copa-parent", "verdict"]
    assert [gate["metric"] for gate in verdict["gates"]] == [gate["metric"] for gate in GATES]
    assert [gate["items"] for gate in verdict["gates"]] == [6, 6, 6]
    assert verdict["gates"][0]["estimate"] == pytest.approx(_mean(first, "ifeval-candidate", "ifeval.prompt_strict"), abs=1e-6)
    gain = [_mean(first, f"copa-{who}", "copa.accuracy_normalised") for who in ("candidate", "parent")]
    assert verdict["gates"][2]["estimate"] == pytest.approx(gain[0] - gain[1], abs=1e-6)
    rates = {row["metric"] for row in verdict["measured"]}
    assert {"ifeval.instruction_strict", "ifeval.answer_length_ratio", "ifeval.finished_rate", "copa.gold_probability"} <= rates

    assert bench.judge()[0].built == []

    more, with_words = bench.judge('evaluation.suites.0.metrics=["words"]')
    assert more.built == [*scored, "verdict"]  # no answer was generated again
    assert "ifeval.words" in {row["metric"] for row in with_words["measured"]}

    rewritten(bench, "ifeval", metrics={"prompt_strict": "higher", "repetition": "lower"})
    assert bench.judge()[0].built == [*scored, "verdict"]  # the suite's text is in the scores, not in the answers

    rewritten(bench, "ifeval", version=2)
    newer, _ = bench.judge()
    assert newer.built == ["suite-ifeval", *answered, *scored, "verdict"]

    mixed = {"suite_ifeval_candidate": newer.made["ifeval-candidate"], "suite_ifeval_parent": first.made["ifeval-parent"]}
    says = r"suite ifeval: suite_ifeval_candidate and suite_ifeval_parent differ in its version \(2 and 1\), so they cannot be"
    with pytest.raises(DataError, match=says):
        bench.workshop.build(VERDICT, bench.plan().judge(), mixed)


def _mean(build, name, metric):
    rows = pq.read_table(build.made[name].path / "scores.parquet").to_pylist()
    values = [row["value"] for row in rows if row["metric"] == metric]
    assert len(values) == 6
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('evaluation.suites=[{name: ifevall, source: x}]', "ifevall: no such suite, did you mean ifeval"),
        ('evaluation.suites=[{name: ifeval}]', "source: missing"),
        ('evaluation.suites=[{name: ifeval, source: x, metrics: [repetitions]}]', "did you mean repetition"),
        ('evaluation.suites=[{name: copa, source: x, metrics: [words]}]', "words: no metric for form choices"),
        ('evaluation.suites=[{name: copa, source: x, answers: {}}]', "suite copa has nothing to answer"),
        ('evaluation.suites=[{name: copa, source: x}, {name: copa, source: y}]', "names one suite twice"),
        ('gates=[{metric: ifeval.prompt_strict, at_least: 0.1}]', "evaluation.suites has no ifeval; add it"),
        ('gates=[{metric: ifevel.prompt_strict, at_least: 0.1}]', "ifevel: no such suite, did you mean ifeval"),
        ('gates=[{metric: ifeval.prompt_stric, at_least: 0.1}]', "has no such metric, did you mean prompt_strict"),
        ('gates=[{metric: copa.gold, at_least: 0.1}]', "copa.gold: the suite has no such metric"),
    ],
)  # fmt: skip
def test_what_a_plan_asks_wrongly_of_suites_is_one_sentence(override, says):
    from tasks.core.errors import SpecError

    with pytest.raises(SpecError, match=says):
        load(DEMO, [override])


def test_a_gate_on_a_judge_needs_one():
    from tasks.core.errors import SpecError

    asked = ["evaluation.suites=[{name: mt-bench, source: x}]", "gates=[{metric: mt-bench.judge_win_rate, at_least: 0.5}]"]
    with pytest.raises(SpecError, match="suite mt-bench has no judge; add one, or leave it out"):
        load(DEMO, asked)
    assert load(DEMO, [*asked, "evaluation.suites.0.judge={model: m}"]).gates[0].comparator == "parent"


def test_a_source_is_relative_to_the_plan():
    plan = load(DEMO, ["evaluation.suites=[{name: copa, source: ../x.jsonl}]"])
    assert plan.evaluation.suites[0].source == DEMO.parents[1] / "x.jsonl"


def test_a_judge_that_nobody_named_stops_a_run_before_it_trains(tmp_path, monkeypatch):
    from flows.execute import look, require_judge
    from tasks.core.errors import MachineError

    source = tmp_path / "questions.jsonl"
    source.write_text('{"question_id": 1, "category": "writing", "turns": ["Say so."]}\n')
    asked = [f"evaluation.suites=[{{name: mt-bench, source: {source}, judge: {{model: m}}}}]", f"store.root={tmp_path / 'store'}"]
    steps = look(load(DEMO, asked)).values()
    monkeypatch.delenv("ALIGN_JUDGE_URL", raising=False)
    with pytest.raises(MachineError, match="a judge is asked for and ALIGN_JUDGE_URL is not set"):
        require_judge(steps)
    require_judge(step for step in steps if "judged" not in step.name)
    built = [replace(step, artifact=SimpleNamespace()) for step in steps]
    require_judge(built, "sft")
    with pytest.raises(MachineError, match="a judge is asked for and ALIGN_JUDGE_URL is not set"):
        require_judge(built, next(step.name for step in steps if "judged" in step.name))
    monkeypatch.setenv("ALIGN_JUDGE_URL", "http://127.0.0.1:9/v1")
    require_judge(steps)
