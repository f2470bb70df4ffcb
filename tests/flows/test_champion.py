"""The champion: whom a candidate meets, whatever happened to the channel."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from challenging import AHEAD, SOUND, moves, plan_of, run, verdict_of, write_plan, write_task_plan
from laid_out import laid_out
from rich.console import Console

from evals.report import challenge
from flows.build import Champion
from flows.champion import Standing, looked_up
from flows.estimating import estimates
from flows.execute import look, up_to_date
from flows.loading import load
from flows.task_pipeline import pipeline
from tasks.base import BASE
from tasks.channels import channel, promote, rollback
from tasks.core.errors import DataError, GateError, SpecError

PLANS = Path(__file__).parents[2] / "flows" / "plans"
QUIET = Console(quiet=True)
MET = ["answers-champion", "scores-champion", "metrics-champion"]


def again(plan):
    """Whether the store alone answers that `plan` is up to date, as `align run` asks it; and whom its candidate meets."""
    steps = look(plan)
    met = steps["verdict"].spec.model_dump().get("champion")
    return up_to_date(plan, steps, console=QUIET), met


# -- whom a candidate meets: the truth table ---------------------------------------------------------------------


def test_without_a_champion_its_gates_are_not_judged_and_the_others_decide(tmp_path, build):
    first = plan_of(tmp_path)
    release = run(first, build)
    said = verdict_of(build)
    assert (said["verdict"], said["champion"]) == ("pass", None)
    assert [gate["metric"] for gate in said["gates"]] == ["finished_rate"]
    assert said["gates"][0]["level"] == 0.95  # Holm counts what is judged
    assert said["not_judged"] == [{"metric": AHEAD["metric"], "demand": "<= 1 against champion", "note": AHEAD["note"]}]
    sentence = "There is no champion yet, so this was not judged: answer_perplexity_ratio (need <= 1 against champion)."
    assert challenge(said) == sentence
    for text in (build.made["verdict"].path / "gates.md", release.path / "README.md"):
        assert sentence in text.read_text()
    assert not set(MET) & build.made.keys()
    assert again(first) == (True, None)  # it is its own champion now, and met none
    assert moves(build) == [("promote", release.key)]


def test_anothers_release_is_met_on_the_same_items_and_named(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    release = run(better, build)
    said = verdict_of(build)
    policy = json.loads((first.path / "release.json").read_text())["policy"]["key"]
    assert said["champion"] == {"release": first.key, "policy": policy}
    assert [(gate["metric"], gate["verdict"], gate["items"]) for gate in said["gates"]] == [
        ("finished_rate", "pass", 60),
        ("answer_perplexity_ratio", "pass", 60),
    ]
    sentence = f"The champion is release {first.key[:12]} with policy {policy[:12]}, measured on the same items."
    for text in (build.made["verdict"].path / "gates.md", release.path / "README.md"):
        assert sentence in text.read_text()
    assert moves(build) == [("promote", first.key), ("promote", release.key)]
    assert {"metrics-champion"} == set(MET) & set(build.built)  # its answers and scores are there since it was a candidate


def test_one_that_is_worse_fails_and_stays_outside(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    worse = plan_of(tmp_path, 0.01)
    with pytest.raises(GateError, match=r"answer_perplexity_ratio: need <= 1 against champion, got 1\.109"):
        run(worse, build)
    assert moves(build) == [("promote", first.key)]
    with pytest.raises(GateError, match="need <= 1 against champion"):  # the store alone says so again
        again(worse)


def test_asked_again_a_released_plan_meets_what_it_met_and_not_itself(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    release = run(better, build)
    assert again(better) == (True, first.key)
    build.built.clear()
    assert run(better, build).key == release.key
    assert build.built == []
    carded = plan_of(tmp_path, 0.2, release={"summary": "Better."})
    renamed = run(carded, build)
    assert build.built == ["release"]
    assert again(carded) == (True, first.key)
    assert moves(build)[1:] == [("promote", release.key), ("promote", renamed.key)]


def test_data_that_changed_nothing_leave_it_up_to_date(tmp_path, build):
    """Which candidate it is, is not known before its data were curated; the champion is not guessed meanwhile."""
    first = run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    run(better, build)
    build.built.clear()
    build.made["curate-instructions"].path.rename(tmp_path / "gone")
    assert look(better)["sft"].state == "waits"
    run(better, build)
    assert build.built == ["curate-instructions"]
    assert verdict_of(build)["champion"]["release"] == first.key


def test_rolled_back_it_hears_the_same_verdict_and_does_not_come_back(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    release = run(better, build)
    rollback(build.workshop.store, "champion", why="tone")
    assert again(better) == (True, first.key)
    build.built.clear()
    assert run(better, build).key == release.key
    assert build.built == []
    assert channel(build.workshop.store, "champion") == first.key


def test_rolled_back_it_does_not_come_back_as_another_release_that_met_another_champion(tmp_path, build):
    store = build.workshop.store
    run(plan_of(tmp_path), build)
    better = run(plan_of(tmp_path, 0.2), build)
    rollback(store, "champion", why="harmful answers")
    stands = run(plan_of(tmp_path, 0.15), build)
    same = run(plan_of(tmp_path, 0.2), build)  # it passes against what stands now, so it is another release of the same policy
    assert same.key != better.key
    assert channel(store, "champion") == stands.key
    assert promote(store, "champion", same, again=True)  # a person may


def test_superseded_it_meets_what_stands_now(tmp_path, build):
    old = plan_of(tmp_path)
    run(old, build)
    best = run(plan_of(tmp_path, 0.3), build)
    old = plan_of(tmp_path)
    assert look(old)["verdict"].artifact is None
    with pytest.raises(GateError, match="need <= 1 against champion"):
        run(old, build)
    assert verdict_of(build)["champion"]["release"] == best.key
    assert channel(build.workshop.store, "champion") == best.key


def test_brought_back_by_hand_it_hears_the_verdict_that_it_was_released_on(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    release = run(better, build)
    run(plan_of(tmp_path, 0.3), build)
    promote(build.workshop.store, "champion", release, again=True)
    assert again(plan_of(tmp_path, 0.2)) == (True, first.key)


def test_released_before_it_had_such_a_gate_it_meets_what_stood_before(tmp_path, build):
    first = run(plan_of(tmp_path), build)
    plain = run(plan_of(tmp_path, 0.2, gates=[SOUND]), build)
    assert "champion" not in json.loads((plain.path / "release.json").read_text())["verdict"]
    asking = plan_of(tmp_path, 0.2)
    release = run(asking, build)
    assert verdict_of(build)["champion"]["release"] == first.key
    assert again(asking) == (True, first.key)
    assert moves(build)[-1] == ("promote", release.key)


# -- what cannot be met ------------------------------------------------------------------------------------------


def test_a_first_release_needs_a_gate_that_can_be_judged(tmp_path, build):
    alone = plan_of(tmp_path, gates=[AHEAD])
    says = "every gate is against the champion and there is none yet; add a gate against base or parent"
    with pytest.raises(GateError, match=says):
        run(alone, build)
    assert verdict_of(build)["verdict"] == "fail"
    text = (build.made["verdict"].path / "gates.md").read_text()
    assert text.startswith("# ❌ fail: all 1 gates not judged: no champion yet\n")
    with pytest.raises(GateError, match=says):
        again(alone)
    assert moves(build) == []


@pytest.fixture
def stranger(tmp_path, build):
    """A builder whose base is to be made afresh, beside a champion that stands."""
    run(plan_of(tmp_path), build)
    policies = build.workshop.store.root / "policy"
    for folder in policies.iterdir():  # the base of another plan would be another artifact
        if json.loads((folder / "manifest.json").read_text())["identity"]["stage"] == "base":
            folder.rename(tmp_path / folder.name)
    build.built.clear()
    return build


@pytest.fixture
def foreign(stranger):
    """A builder whose base has another tokenizer than the champion."""
    return replace(stranger, tokenizer="2" * 64)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"tokenizer": "2" * 64}, r"\(their tokenizers differ\)"),
        ({"template": "3" * 64}, "answers in another chat template than"),
    ],
)
def test_what_is_counted_by_token_is_refused_for_other_tokens_before_anything_is_trained(tmp_path, stranger, other, why):
    foreign = replace(stranger, **other)
    says = (
        rf"gate answer_perplexity_ratio against champion: champion points to release \w{{12}}, .*{why}.*"
        "such as reward_win_rate.* or set release.channel to another channel"
    )
    with pytest.raises(SpecError, match=says):
        run(plan_of(tmp_path, 0.2), foreign)
    assert foreign.built == ["base"]  # the curated rows were there
    with pytest.raises(SpecError, match=says):  # once the base is there, `align plan` knows it too
        look(plan_of(tmp_path, 0.2))
    assert foreign.built == ["base"]


def test_what_is_not_counted_by_token_is_compared_across_tokenizers(tmp_path, foreign):
    ended = {"metric": "reward_win_rate", "at_least": 0.5, "against": "champion"}
    other = write_plan(tmp_path, sft={"learning_rate": 0.2}, gates=[SOUND, ended], reward={"method": {"name": "full"}},
                       data={"preferences": {"sources": ["rows.jsonl"]}})  # fmt: skip
    base = foreign(BASE, other.model.spec(), other.model.files())
    met = Standing.of(other, foreign.workshop.store).against(base)
    assert met
    assert met[0] == channel(foreign.workshop.store, "champion")


def test_general_text_is_compared_across_chat_templates_and_not_across_tokenizers(tmp_path, stranger):
    text = {"metric": "text_perplexity_ratio", "at_most": 1, "against": "champion"}
    plan = write_plan(tmp_path, sft={"learning_rate": 0.2}, gates=[SOUND, text], data={"texts": {"sources": ["rows.jsonl"]}})
    standing = Standing.of(plan, stranger.workshop.store)
    base = replace(stranger, template="3" * 64)(BASE, plan.model.spec(), plan.model.files())
    assert standing.against(base)
    base.path.rename(tmp_path / "gone")
    base = replace(stranger, tokenizer="2" * 64)(BASE, plan.model.spec(), plan.model.files())
    with pytest.raises(SpecError, match=r"gate text_perplexity_ratio against champion: .*their tokenizers differ"):
        standing.against(base)


def test_a_champion_that_is_damaged_or_gone_is_named(tmp_path, build):
    run(plan_of(tmp_path), build)
    better = plan_of(tmp_path, 0.2)
    policy = build.made["sft"]
    quality = policy.path / "quality.json"
    quality.chmod(0o644)
    quality.write_text("9.9")
    says = "the champion that champion points to cannot be compared with: policy/.* gone or damaged now.*`align rollback`"
    for act in (lambda: look(better), lambda: run(better, build)):
        with pytest.raises(DataError, match=says):
            act()


def test_a_model_for_something_else_is_no_champion(tmp_path, build):
    run(plan_of(tmp_path), build)
    head = write_task_plan(tmp_path)
    with pytest.raises(SpecError, match="points to a model for writing text, and this plan makes one for sequence class"):
        run(head, build)


def test_a_plan_without_such_gates_asks_nothing_about_a_champion(tmp_path, build):
    plain = plan_of(tmp_path, gates=[SOUND])
    (build.workshop.store.folder("channels") / "champion.json").write_text("torn")
    assert Standing.of(plain, build.workshop.store).keys == ()
    run(plain, build, land=False)
    assert verdict_of(build).keys() == {"verdict", "reasons", "gates", "measured", "seed", "resamples"}
    assert build.made["verdict"].identity["spec"].keys() == {"gates", "seed", "resamples"}
    with pytest.raises(DataError, match=r"champion.json: torn"):
        looked_up(plan_of(tmp_path), build.workshop.store)


def test_task_heads_meet_theirs_on_the_same_rows_and_keep_their_own_majority(tmp_path, build):
    def head(quality):
        return write_task_plan(tmp_path, task={"learning_rate": quality})

    first = run(head(0.5), build)
    assert verdict_of(build)["champion"] is None
    second = run(head(0.9), build)
    said = verdict_of(build)
    assert said["champion"]["release"] == first.key
    assert said["gates"][0]["estimate"] == pytest.approx(0.4)
    assert said["gates"][0]["items"] == 60
    assert moves(build) == [("promote", first.key), ("promote", second.key)]
    assert again(head(0.9)) == (True, first.key)


# -- in a plan ---------------------------------------------------------------------------------------------------


def test_a_champion_is_measured_by_itself_and_changes_nothing_else():
    suites = [{"name": "ifeval", "source": "ifeval.jsonl", "judge": {"model": "judge"}}]
    gates = [{"metric": "reward_win_rate", "at_least": 0.5, "against": "champion"}, SOUND]
    plan = load(PLANS / "demo.yaml", [f"gates={json.dumps(gates)}", f"evaluation.suites={json.dumps(suites)}"])
    alone = laid_out(plan)
    beside = laid_out(plan, partial(pipeline, meet=lambda candidate: Champion("1" * 64, "theirs")))
    held_out = {name: f"curate-{name}" for name in ("instructions", "preferences", "texts")}
    suite, mine = "suite-ifeval", "answers-ifeval-candidate"
    assert {name: given for name, given in beside.items() if name not in alone} == {
        "answers-champion": {"policy": "theirs", "prompts": "curate-prompts"},
        "scores-champion": {"policy": "theirs", **held_out},
        "rewards-champion": {"reward_model": "reward", "answers_champion": "answers-champion"},
        "metrics-champion": {"prompts": "curate-prompts", "answers_champion": "answers-champion"},
        "answers-ifeval-champion": {"policy": "theirs", "prompts": suite},
        "ifeval-champion": {"prompts": suite, "answers": "answers-ifeval-champion"},
        "ifeval-judged-champion": {
            "prompts": suite, "answers_candidate": mine, "answers_other": "answers-ifeval-champion",
        },
    }  # fmt: skip
    assert {name: given for name, given in beside.items() if alone.get(name) == given} == {
        name: given for name, given in alone.items() if name not in ("verdict", "release")
    }
    new = ("scores_champion", "rewards_champion", "metrics_champion", "suite_ifeval_champion", "judged_ifeval_champion")
    assert beside["verdict"].keys() - alone["verdict"].keys() == {*new, "policy", "champion"}
    assert beside["verdict"].keys() - beside["release"].keys() == set()


def test_an_estimate_counts_what_the_champion_takes(tmp_path, build):
    run(plan_of(tmp_path), build)
    rows = {row.stage: row for row in estimates(plan_of(tmp_path, 0.2))}
    assert {"answers-champion", "scores-champion"} < rows.keys()
    assert rows["answers-champion"].memory == rows["answers-candidate"].memory
