"""Tasks of lm-eval from a plan to a verdict: what a plan may ask, what is built again, and one run by the real command line."""

import json
import os
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import lm_tasks
import pytest
import tiny
from smoke import ended, write_smoke

from evals.gates import Gate
from flows.loading import load
from flows.suites import measured
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.core.store import Store
from tasks.judge import VERDICT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
DEMO = Path(__file__).parents[2] / "flows" / "plans" / "demo.yaml"
GATES = [
    {"metric": "lm_eval.tiny_choose.acc", "at_least": -1, "against": "parent"},
    {"metric": "lm_eval.tiny_read.word_perplexity", "margin": 0.5, "against": "parent"},
]


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Builds the suites of a plan in this process, and its verdict: the names that were built, and the verdict."""
    for module in ("base", "harness"):
        monkeypatch.setattr(
            f"tasks.{module}.run_child", lambda job, *given, **_: import_module(f"tasks.training.{job}").run(*given)
        )
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    models = {
        who: tiny.write_policy(tmp_path / who, tmp_path / "models", tiny.write_model(tmp_path / f"{who}-source", seed=seed), who)
        for who, seed in (("candidate", 1), ("parent", 0))
    }
    workshop = Workshop(Store(tmp_path / "store"), tmp_path / "models", Execution(device="cpu"))

    def run(*overrides):
        asked = [{"lm_eval": f"tiny_{name}", "include": str(tmp_path / "tasks")} for name in ("choose", "read")]
        plan = load(DEMO, [f"evaluation.suites={json.dumps(asked)}", f"gates={json.dumps(GATES)}", *overrides])
        built = []

        def build(stage, spec, inputs, *, name=None):
            artifact, new = workshop.build(stage, spec, inputs)
            built.extend([name or stage.name] if new else [])
            return artifact

        verdict = build(VERDICT, plan.judge(), measured(plan, build, models).scores)
        return built, json.loads((verdict.path / "verdict.json").read_text())

    lm_tasks.write_tasks(tmp_path / "tasks")
    return run


def test_tasks_go_from_a_plan_to_a_verdict_and_only_what_changed_is_measured_again(judge, tmp_path):
    built, verdict = judge()
    choose, read = (
        [f"lm-eval-tiny_{name}", f"lm-eval-tiny_{name}-candidate", f"lm-eval-tiny_{name}-parent"] for name in ("choose", "read")
    )
    assert built == [*choose, *read, "verdict"]
    gates = {gate["metric"]: gate for gate in verdict["gates"]}
    assert [gates[gate["metric"]]["items"] for gate in GATES] == [12, 12]
    ratio = gates["lm_eval.tiny_read.word_perplexity"]
    assert 0.5 < ratio["estimate"] < 2
    assert "no worse by more than 50%" in Gate(**GATES[1]).demand
    found = {(row["metric"], row["against"]): row for row in verdict["measured"]}
    assert {("lm_eval.tiny_choose.acc_norm", None), ("lm_eval.tiny_choose.acc_norm", "parent")} <= found.keys()
    alone = found["lm_eval.tiny_read.word_perplexity", None]
    assert (alone["unit"], alone["better"]) == ("perplexity per word", "lower")
    assert judge()[0] == []

    again, _ = judge("evaluation.suites.0.limit=5")
    assert again == [*choose[1:], "verdict"]  # the documents are there
    path = tmp_path / "tasks" / "choose.yaml"
    path.write_text(path.read_text().replace("{{query}}", "So: {{query}}"))
    assert judge()[0] == [*choose, *read, "verdict"]  # an edited file of the folder


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("gates=[{metric: lm_eval.arc_easy.acc, at_least: 0.1}]", "evaluation.suites has no lm_eval: arc_easy; add it"),
        (
            "gates=[{metric: lm_eval.tiny_chose.acc, at_least: 0.1}]",
            "has no lm_eval: tiny_chose; .*, did you mean lm_eval.tiny_choose",
        ),
        (
            "gates=[{metric: lm_eval.acc, at_least: 0.1}]",
            "lm_eval.acc: no metric of lm-eval; it is called lm_eval.<task>.<metric>",
        ),
        ("gates=[{metric: lm_eval.tiny_choose.own, margin: 0.1, against: parent}]", "so it takes no margin; set at_least"),
        ("evaluation.suites.0.source=x", "evaluation.suites.0.source: no such field"),
        ("evaluation.suites.0.limit=0", "evaluation.suites.0.limit: should be greater than 0"),
        ("evaluation.suites=[{lm_eval: a-b}, {lm_eval: a_b}]", "names one suite twice"),
    ],
)
def test_what_a_plan_asks_wrongly_of_tasks_is_one_sentence(override, says):
    suites = 'evaluation.suites=[{"lm_eval": "tiny_choose", "include": "../tasks"}]'
    assert load(DEMO, [suites]).evaluation.suites[0].include == DEMO.parents[1] / "tasks"
    with pytest.raises(SpecError, match=says):
        load(DEMO, [suites, override])


def test_a_suite_and_a_task_of_one_name_are_told_apart():
    suites = "evaluation.suites=[{name: gsm8k, source: x}, {lm_eval: gsm8k, few_shot: 5}]"
    gates = "gates=[{metric: gsm8k.number_match, at_least: 0.1}, {metric: lm_eval.gsm8k.exact_match_strict_match, at_least: 0.1}]"
    assert [entry.suite for entry in load(DEMO, [suites, gates]).evaluation.suites] == ["gsm8k", "lm_eval.gsm8k"]


def test_without_lm_eval_a_plan_that_asks_for_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("flows.suite_plan.installed", lambda: None)
    with pytest.raises(SpecError, match=r"which is not installed; pip install -c constraints.txt -e '\.\[lm-eval\]'"):
        load(DEMO, ["evaluation.suites=[{lm_eval: arc_easy}]"])


PLAN = """
name: harnessed
model: {base: ./tiny}
data:
  instructions: {sources: [instructions.jsonl], heldout: 0.3}
  prompts: {sources: [prompts.jsonl]}
sft: {max_steps: 2, global_batch: 4, max_length: 1024}
evaluation:
  answers: {max_new_tokens: 8}
  suites:
    - {lm_eval: tiny_choose, include: ./tasks, few_shot: 1, chat_template: true}
gates:
  - {metric: lm_eval.tiny_choose.acc, at_least: -1, against: parent}
execution: {device: cpu, parallel: 2, threads: 1, checkpoint_every: 1}
"""


@pytest.mark.slow
def test_a_plan_with_a_task_of_lm_eval_is_released(tmp_path):
    made = write_smoke(tmp_path, None)
    lm_tasks.write_tasks(tmp_path / "tasks")
    (tmp_path / "plan.yaml").write_text(PLAN)
    printed = made.align("run", "plan.yaml")
    assert "released" in printed
    stages = ended(printed)
    names = ["lm-eval-tiny_choose", "lm-eval-tiny_choose-candidate", "lm-eval-tiny_choose-parent"]
    assert {name: stages[name] for name in names} == dict.fromkeys(names, "built")
    release = next((made.store / "release").glob("*/release.json"))
    assert {"lm-eval-task", "lm-eval"} <= {entry["stage"] for entry in json.loads(release.read_text())["lineage"]}
