"""Successive halving over methods: who goes on, what is asked again after a kill, and what is written at the end."""

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from smoke import ended, write_smoke

from flows.loading import load
from flows.plan import Plan
from flows.search import execute, refuse_unasked, search, table, target_of, winner, write_winner
from tasks.core.errors import SpecError
from tasks.search import SEARCH_FILE, SearchSpec, Trial
from tasks.search import search as summarise
from tasks.tables import score, write_scores

DEMO = Path(__file__).parents[2] / "flows" / "plans" / "search.yaml"


class Bench:
    """A builder whose trainings are a formula: the best rate is 1e-3, the best method ia3, and more steps help."""

    def __init__(self, root: Path, fails: str = "") -> None:
        self.root, self.fails = root, fails
        self.asked: dict[str, object] = {}
        self.summary: Path | None = None

    def __call__(self, stage, spec, inputs, *, name=None):
        name = name or stage.name
        self.asked[name] = spec
        if stage.name == "search":
            self.summary = self.root / "summary"
            self.summary.mkdir(exist_ok=True)
            self.metrics = stage.function(spec, inputs, self.summary, None)
        return inputs["policy"] if stage.name == "scores" and name != "scores-base" else name

    def read(self, name):
        spec = self.asked[name]
        if self.fails and spec.method.name == self.fails:
            return "training diverged"
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        nll = 1 + abs(math.log10(spec.learning_rate / 1e-3)) + (spec.method.name != "ia3") + 1 / spec.max_steps
        items = np.random.default_rng(0).normal(0, 0.1, 30)
        rows = [{"id": f"{i:02}", "conversation": f"{i:02}"} for i in range(30)]
        write_scores(folder, [score("answer_nll", row, nll + x, weight=10) for row, x in zip(rows, items, strict=True)])
        return folder


class Handed(Bench):
    """The same, with the folders of scores as inputs of the summary."""

    def __call__(self, stage, spec, inputs, *, name=None):
        if stage.name == "search":
            inputs = {trial: self.root / where for trial, where in inputs.items()}
        return super().__call__(stage, spec, inputs, name=name)


def run(tmp_path, *overrides, fails=""):
    plan = load(DEMO, overrides)
    bench = Handed(tmp_path, fails)
    search(plan, bench, bench.read)
    return plan, bench, json.loads((bench.summary / SEARCH_FILE).read_text())


def test_half_of_a_bracket_goes_on_and_they_are_the_better_half(tmp_path):
    _, _, record = run(tmp_path)
    trials = [row for row in record["trials"] if row["name"] != "own"]
    assert len(trials) == 8
    for first in (0, 4):
        bracket = [row for row in trials if int(row["name"].removeprefix("trial-")) in range(first, first + 4)]
        assert sorted(row["steps"] for row in bracket) == [2, 2, 6, 6]

        def short(row):  # what the first rung saw
            rate = row["learning_rate"]
            return abs(math.log10(rate / 1e-3)) + (row["method"]["name"] != "ia3")

        assert max(map(short, (r for r in bracket if r["steps"] == 6))) <= min(
            map(short, (r for r in bracket if r["steps"] == 2))
        )


def test_the_winner_is_the_best_of_the_last_rung_with_a_paired_interval_against_the_plans_own(tmp_path):
    plan, _, record = run(tmp_path)
    last = [row for row in record["trials"] if row["steps"] == 6]
    best = min(last, key=lambda row: row["value"])
    assert record["winner"] == best["name"] == record["trials"][0]["name"]
    own = next(row for row in record["trials"] if row["name"] == "own")
    assert own["method"] == json.loads(plan.sft.method.model_dump_json())
    apart = best["difference"]
    assert apart["value"] == pytest.approx(best["value"] - own["value"])
    assert apart["real"] and apart["interval"][1] < 0  # the same noise in both cancels in pairs, though it is in each interval


def test_asked_twice_the_questions_are_the_same(tmp_path):
    first, second = ((tmp_path / name) for name in ("a", "b"))
    first.mkdir()
    second.mkdir()
    assert run(first)[1].asked == run(second)[1].asked
    assert run(first)[1].asked != run(second, "seed=1")[1].asked


def test_a_failed_trial_is_listed_with_its_reason_and_never_wins(tmp_path):
    _, _, record = run(tmp_path, fails="ia3")
    failed = [row for row in record["trials"] if row["failed"]]
    assert failed
    assert all(row["value"] is None and row["failed"] == "training diverged" and row["method"]["name"] == "ia3" for row in failed)
    assert record["winner"] not in [row["name"] for row in failed]


def test_a_trial_that_equals_the_plans_own_item_by_item_is_not_told_from_it(tmp_path):
    rows = [{"id": f"{i:02}", "conversation": f"{i:02}"} for i in range(30)]
    write_scores(tmp_path, [score("answer_nll", row, 1 + i / 30, weight=10) for i, row in enumerate(rows)])
    plan = load(DEMO)
    trials = tuple(Trial(name=name, sft=plan.sft, rung=0) for name in ("own", "trial-0"))
    spec = SearchSpec(metric="answer_perplexity", steps=(2,), trials=trials)
    summarise(spec, {"own": tmp_path, "trial-0": tmp_path}, tmp_path, None)
    record = json.loads((tmp_path / SEARCH_FILE).read_text())
    assert record["winner"] == "own"
    twin = next(row for row in record["trials"] if row["name"] == "trial-0")
    assert twin["difference"] == {"value": 0.0, "interval": [None, None], "real": False}
    assert "+0 [?, ?]" in (tmp_path / "search.md").read_text()
    assert "+0 \\[?, ?]" in list(table(record).columns[-1].cells)[1]


def test_a_varied_rank_keeps_alpha_over_rank(tmp_path):
    _, _, record = run(tmp_path)
    sizes = {(row["method"]["rank"], row["method"]["alpha"]) for row in record["trials"] if "rank" in row["method"]}
    assert sizes <= {(4, 8.0), (16, 32.0)}


def test_the_winner_is_written_as_a_plan_whose_later_stages_follow(tmp_path):
    plan, _, record = run(tmp_path)
    changed = winner(plan, record)
    out = tmp_path / "found.yaml"
    write_winner(DEMO, (), changed, out)
    found = load(out)
    row = record["trials"][0]
    assert (found.name, found.search) == ("search-found", None)
    assert found.sft.learning_rate == row["learning_rate"]
    assert found.reward.method == found.policy.method == found.sft.method
    assert found.sft.method.name == row["method"]["name"]
    assert found.data.texts.files() == plan.data.texts.files()
    assert found.sft.max_steps == plan.sft.max_steps


def test_where_the_plans_own_wins_nothing_is_written(tmp_path):
    plan, _, record = run(tmp_path, "search.methods=[{name: lora}]", "search.vary={}", "sft.method={name: ia3}",
                          "sft.learning_rate=1e-3", "reward.method={name: ia3}", "policy.method={name: ia3}")  # fmt: skip
    assert record["winner"] == "own"
    assert winner(plan, record) is None


def test_a_winner_that_the_rest_of_the_plan_refuses_leaves_no_file(tmp_path):
    with pytest.raises(SpecError, match="does not fit the rest of the plan"):
        write_winner(DEMO, (), {"sft": {"method": {"name": "prefix_tuning"}}}, tmp_path / "found.yaml")
    assert list(tmp_path.iterdir()) == []


def test_where_the_winner_goes_is_looked_at_before_anything_is_trained(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(DEMO.read_text())
    (tmp_path / "mine.yaml").write_text("name: mine")
    for out, says in (
        ("plan.yaml", "this is the plan itself"),
        ("no/x.yaml", "there is no folder"),
        ("mine.yaml", "exists already"),
    ):
        with pytest.raises(SpecError, match=says):
            target_of(plan, tmp_path / out)
    assert target_of(plan, None) == tmp_path / "plan-found.yaml"


def test_a_stage_that_no_course_of_the_search_has_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    for stage in ("trial-99-6", "trial-1-3", "sft", "scores-own-3"):
        with pytest.raises(SpecError, match=f"^{stage}: the search has no such stage; it has base, curate-instructions, .*known"):
            execute(DEMO, (), tmp_path / "found.yaml", rerun=stage)
    with pytest.raises(SpecError, match=r"^trial-1-6: the search has no such stage; it has trial-1-2$"):  # it dropped out
        refuse_unasked("trial-1-6", ["trial-1-2"])


def test_a_dry_run_shows_the_stages_that_are_known_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    execute(DEMO, (), tmp_path / "found.yaml", dry_run=True, json_output=True)
    steps = json.loads(capsys.readouterr().out)
    assert [step["stage"] for step in steps] == ["base", "curate-instructions", "own-6", "scores-own-6"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.methods=[{name: lora}, {name: lora, rank: 4}]", "one of each name"),
        ("search.methods=[head]", "method head cannot train sft"),
        ("search.methods=[]", "search.methods"),
        ("search.methods=[lora, moe_router]", "search: method moe_router: llama is no mixture of experts; use full or lora"),
        ("search.vary={rank: []}", "vary.rank: nothing to choose from"),
        ("search.vary={rnak: [1]}", "none of lora, dora, ia3, bitfit has such a field"),
        ("search.vary={rank: [0]}", "greater than 0"),
        ("search.steps=[6, 2]", "each rung needs more steps"),
        ("search.learning_rate=[10, 1]", "is no range"),
        ("search.metric=reward_win_rate", "say against: base"),
        ("search.metric=finished_rate", "needs finished, which a search does not measure"),
        ("search.metric=perplexity", "no such metric"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(override, says):
    with pytest.raises(SpecError, match=says):
        load(DEMO, [override])


SEARCH = """
search:
  methods: [lora, ia3, {name: dora, targets: [nowhere]}]
  vary: {rank: [2, 4]}
  steps: [1, 2]
  trials: 6
  bracket: 6
  reduction: 2
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(tmp_path, prefect_server):
    smoke = write_smoke(tmp_path, prefect_server)
    plan = smoke.folder / "plan.yaml"
    plan.write_text(plan.read_text() + SEARCH)
    process = smoke.start("search", "plan.yaml")
    scores = smoke.store / "scores"
    deadline = time.monotonic() + 300
    while not list(scores.glob("*/manifest.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path.parent.name for path in smoke.store.glob("*/*/manifest.json")}
    printed = smoke.align("search", "plan.yaml")
    states = ended(printed)
    assert {"base", "curate-instructions"} <= {name for name, state in states.items() if state == "cached"}
    assert sum(state == "cached" for state in states.values()) >= len(before)
    assert len([name for name in states if name.startswith("trial-") and name.endswith("-1")]) == 6
    assert len([name for name in states if name.startswith("trial-") and name.endswith("-2")]) == 3
    assert "failed" in states.values()  # the targets that are nowhere: asked again, failed again, and the rest is there
    record, _ = json.JSONDecoder().raw_decode(smoke.align("search", "plan.yaml", "--json"))  # what follows went to stderr
    assert len(record["trials"]) == 7
    failed = [row for row in record["trials"] if row["failed"]]
    assert failed
    assert all(row["method"]["name"] == "dora" and "has no such modules" in row["failed"] for row in failed)
    states = ended(smoke.align("search", "plan.yaml", "--rerun", "own-2"))
    assert [name for name, state in states.items() if state == "built"] == ["own-2", "search"]  # it came out equal
    assert states["scores-own-2"] == "cached"
    if record["plan"]:
        found = load(smoke.folder / "plan-found.yaml")
        assert found.sft.learning_rate == record["trials"][0]["learning_rate"]
        assert yaml.safe_load((smoke.folder / "plan-found.yaml").read_text())["name"] == "smoke-found"
    assert isinstance(load(plan), Plan)
