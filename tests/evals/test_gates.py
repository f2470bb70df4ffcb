"""Gates: judged on the pessimistic end, corrected for their number, and said in one sentence with the numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scoring import rows, write

from evals.gates import Gate, judge, measured, overall
from evals.scores import Scores, Series
from tasks.core.errors import DataError

_ITEMS = np.array([f"i{i:03d}" for i in range(100)])
FINISHED = Scores({("candidate", "finished"): Series(_ITEMS, _ITEMS, np.repeat([1.0, 0.0], [80, 20]), np.ones(100))})


def finished(tmp_path, yes, no):
    return Scores.read({"scores_candidate": write(tmp_path / f"{yes}-{no}", rows("finished", [1.0] * yes + [0.0] * no))})


def one(scores, **fields):
    return judge([Gate(metric="finished_rate", **fields)], scores, seed=0)[0]


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"at_least": 0.6}, "pass"),
        ({"at_least": 0.75}, "review"),  # the value is above it, the pessimistic end below
        ({"at_least": 0.85}, "review"),
        ({"at_least": 0.95}, "fail"),
        ({"at_most": 0.95}, "pass"),
        ({"at_most": 0.75}, "review"),
        ({"at_most": 0.6}, "fail"),
        ({"at_least": 0.6, "at_most": 0.95}, "pass"),
        ({"at_least": 0.75, "at_most": 0.95}, "review"),
        ({"at_least": 0.6, "at_most": 0.65}, "fail"),
        ({"at_least": 0.6, "at_most": 0.85}, "review"),
    ],
)
def test_the_whole_interval_decides(tmp_path, bounds, verdict):
    found = one(finished(tmp_path, 80, 20), **bounds)
    assert found.estimate.value == 0.8
    assert 0.69 < found.estimate.low < 0.74 < 0.85 < found.estimate.high < 0.88
    assert found.verdict == verdict


def test_a_bound_on_the_end_of_the_interval_is_met(tmp_path):
    scores = finished(tmp_path, 80, 20)
    low, high = one(scores, at_least=0.5).estimate[1:3]
    assert one(scores, at_least=low).verdict == "pass"
    assert one(scores, at_least=high).verdict == "review"
    assert one(scores, at_least=high + 1e-9).verdict == "fail"


def test_a_few_perfect_items_prove_little(tmp_path):
    assert one(finished(tmp_path, 5, 0), at_least=0.9).verdict == "review"
    assert one(finished(tmp_path, 60, 0), at_least=0.9).verdict == "pass"


def test_more_gates_ask_more_of_each(tmp_path):
    scores = finished(tmp_path, 80, 20)
    gate = Gate(metric="finished_rate", at_least=0.7)
    alone, among = judge([gate], scores, seed=0)[0], judge([gate] * 5, scores, seed=0)[0]
    assert (alone.estimate.level, among.estimate.level) == (0.95, pytest.approx(0.99))
    assert among.estimate.low < alone.estimate.low
    assert (alone.verdict, among.verdict) == ("pass", "review")
    assert alone.p == among.p


def test_holms_steps_pass_what_bonferroni_would_not_and_stop_at_the_first_that_does_not(tmp_path):
    scores = finished(tmp_path, 80, 20)
    bounds = (0.5, 0.7, 0.78, 0.9)  # p: far below, between the thresholds of one and of four gates, not sure, on the wrong side
    found = judge([Gate(metric="finished_rate", at_least=bound) for bound in reversed(bounds)], scores, seed=0)[::-1]
    assert [j.verdict for j in found] == ["pass", "review", "review", "fail"]
    assert [j.estimate.level for j in found] == pytest.approx([1 - 0.05 / 4, *[1 - 0.05 / 3] * 3])
    pair = judge([Gate(metric="finished_rate", at_least=bound) for bound in (0.5, 0.7)], scores, seed=0)
    assert 0.025 < pair[1].p < 0.05  # one of two by Bonferroni would need 0.025
    assert [j.verdict for j in pair] == ["pass", "pass"]
    assert [j.estimate.level for j in pair] == pytest.approx([0.975, 0.95])


@given(st.lists(st.floats(0.5, 0.99), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_gate_passes_exactly_where_its_interval_clears_the_bound_and_its_p_the_level(bounds):
    for found in judge([Gate(metric="finished_rate", at_least=bound) for bound in bounds], FINISHED, seed=0):
        cleared = found.estimate.low >= found.gate.at_least
        assert (found.verdict == "pass") == cleared == (found.p <= 1 - found.estimate.level)


def test_gates_with_levels_of_their_own_step_by_p_over_what_they_leave_out(tmp_path):
    scores = finished(tmp_path, 80, 20)
    strict, loose = (Gate(metric="finished_rate", at_least=0.7, level=level) for level in (0.999, 0.9))
    found = judge([strict, loose], scores, seed=0)
    assert [j.verdict for j in found] == ["review", "pass"]
    assert [j.estimate.level for j in found] == pytest.approx([0.999, 0.95])


def compared(tmp_path, metric, candidate, parent, **more):
    folders = {who: write(tmp_path / who, rows(metric, values, **more)) for who, values in (("c", candidate), ("p", parent))}
    return Scores.read({"scores_candidate": folders["c"], "scores_parent": folders["p"]})


@pytest.mark.parametrize(
    ("fields", "limits", "demand"),
    [
        ({"metric": "text_perplexity_ratio", "margin": 0.02}, (None, 1.02), "<= 1.02 against parent (no worse by more than 2%)"),
        (
            {"metric": "answer_length_ratio", "margin": 0.1, "against": "base"},
            (None, 1.1),
            "<= 1.1 against base (no worse by more than 10%)",
        ),
        ({"metric": "reward_win_rate", "margin": 0.05}, (0.45, None), ">= 0.45 against parent (no worse by more than 0.05)"),
        ({"metric": "reward_difference", "margin": 0.0}, (0.0, None), ">= 0 against parent (no worse by more than 0)"),
        (
            {"metric": "macro_f1", "margin": 0.03, "against": "majority"},
            (-0.03, None),
            ">= -0.03 against majority (no worse by more than 0.03)",
        ),
    ],
)
def test_a_margin_is_the_bound_on_the_side_that_is_worse_a_share_of_a_ratio_and_a_distance_else(fields, limits, demand):
    gate = Gate(**fields)
    assert gate.limits == (pytest.approx(limits[0]), pytest.approx(limits[1]))
    assert gate.demand == demand


def test_no_worse_by_a_margin_passes_what_at_least_parity_does_not(tmp_path):
    scores = compared(tmp_path, "reward", [1.0, 0.0] * 100, [0.0, 1.0] * 100)
    by_margin, by_bound, parity = judge(
        [Gate(metric="reward_win_rate", **more) for more in ({"margin": 0.1}, {"at_least": 0.4}, {"at_least": 0.5})],
        scores,
        seed=0,
    )
    assert (by_margin.verdict, by_bound.verdict, parity.verdict) == ("pass", "pass", "review")
    assert by_margin.p == by_bound.p
    assert {name: by_margin.row()[name] for name in ("at_least", "at_most", "margin")} == {
        "at_least": 0.4, "at_most": None, "margin": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("bound", [{"at_least": 0.0}, {"margin": 0.0}, {"margin": 5.0}])
def test_a_model_compared_with_itself_proves_nothing(tmp_path, bound):
    scores = compared(tmp_path, "reward", [1.0, 3.0, 2.0] * 30, [1.0, 3.0, 2.0] * 30)
    found = judge([Gate(metric="reward_difference", **bound)], scores, seed=0)[0]
    assert (found.verdict, found.p, found.items_needed) == ("review", 1.0, None)
    assert (found.row()["low"], found.row()["high"], found.row()["smallest_effect"]) == (None, None, None)
    assert found.sentence.endswith(": review (all conversations say exactly the same, which shows nothing about others)")
    assert " got 0.000 [?, ?] at 95%, p=1 on n=90" in found.sentence


def test_sentences_give_need_found_interval_level_and_count(tmp_path):
    shared = write(tmp_path / "c", rows("reward", [1.0] * 50 + [0.0] * 30))
    other = write(tmp_path / "p", rows("reward", [0.0] * 50 + [1.0] * 30))
    scores = Scores.read({"scores_candidate": shared, "scores_parent": other})
    gate = Gate(metric="reward_win_rate", at_least=0.5)
    third = judge([gate] * 3, scores, seed=0)[0]
    assert third.sentence == (
        "reward_win_rate: need >= 0.5 against parent, got 0.625 [0.485, 0.751] at 98.3%, p=0.033 on n=80: review "
        "(the smallest effect this sample could have seen is 0.186; about 177 items would settle it)"
    )
    loose = judge([Gate(metric="reward_win_rate", at_least=0.4, at_most=0.8)], scores, seed=0)[0]
    assert (
        loose.sentence
        == "reward_win_rate: need >= 0.4 and <= 0.8 against parent, got 0.625 [0.510, 0.731] at 95%, p<0.001 on n=80: pass"
    )


def test_sentences_count_conversations_and_say_when_it_lies_on_the_bound(tmp_path):
    table = [{**line, "cluster": f"c{i // 2}"} for i, line in enumerate(rows("finished", [1.0, 0.0] * 20))]
    scores = Scores.read({"scores_candidate": write(tmp_path / "a", table)})
    found = one(scores, at_least=0.5)
    assert found.sentence == (
        "finished_rate: need >= 0.5, got 0.500 [0.416, 0.584] at 95%, p=1 on n=40 in 20 conversations: review "
        "(the smallest effect this sample could have seen is 0.119; it lies on the bound)"
    )
    evens = one(finished(tmp_path, 20, 20), at_least=0.5)
    assert evens.items_needed is None
    assert evens.sentence.endswith("; it lies on the bound)")


def test_any_fail_is_a_fail_then_any_review_a_review_and_nothing_asked_is_a_review(tmp_path):
    scores = finished(tmp_path, 80, 20)
    good, unsure, bad = (one(scores, at_least=bound) for bound in (0.6, 0.75, 0.95))
    assert overall([good, good]) == "pass"
    assert overall([good, unsure]) == "review"
    assert overall([unsure, bad, good]) == "fail"
    assert overall([]) == "review"


def test_a_row_holds_every_number(tmp_path):
    found = one(finished(tmp_path, 80, 20), at_least=0.75, note="answers must end")
    assert found.row() == {
        "metric": "finished_rate", "against": None, "estimate": 0.8, "low": pytest.approx(0.71, abs=0.02),
        "high": pytest.approx(0.87, abs=0.02), "level": 0.95, "standard_error": pytest.approx(0.0402, abs=1e-3), "items": 100,
        "clusters": 100, "at_least": 0.75, "at_most": None, "demand": ">= 0.75", "note": "answers must end",
        "unit": "share of prompts", "verdict": "review", "sentence": found.sentence,
        "smallest_effect": pytest.approx(0.1258, abs=1e-4), "margin": None,
        "p": pytest.approx(0.297662), "items_needed": found.items_needed,
    }  # fmt: skip
    assert found.items_needed == math.ceil(100 * (found.smallest_effect / 0.05) ** 2) == 634


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metric": "reward_winrate", "at_least": 0.5}, "gate reward_winrate: no such metric, did you mean reward_win_rate"),
        ({"metric": "zzz", "at_least": 0.5}, "there are preference_accuracy, .*repetition"),
        ({"metric": "finished_rate"}, "none of at_least, at_most and margin is set"),
        ({"metric": "reward_win_rate", "at_least": 0.5, "margin": 0.1}, "margin is a bound already"),
        ({"metric": "reward_win_rate", "margin": -0.1}, "greater than or equal to 0"),
        ({"metric": "finished_rate", "margin": 0.1}, "a margin is to another model, and it is measured on the candidate alone"),
        ({"metric": "repetition", "margin": 0.1, "against": "parent"}, "which way is worse, has no number here"),
        ({"metric": "finished_rate", "at_least": 0.9, "at_most": 0.1}, "at_least 0.9 is above at_most 0.1"),
        ({"metric": "finished_rate", "at_least": 0.9, "against": "base"}, "leave out against: base"),
        ({"metric": "finished_rate", "at_least": 0.9, "against": "champion"}, "against"),
        ({"metric": "finished_rate", "at_least": float("nan")}, "finite"),
        ({"metric": "finished_rate", "at_least": 0.9, "level": 1}, "less than 1"),
        ({"metric": "finished_rate", "atleast": 0.9}, "atleast"),
    ],
)
def test_a_senseless_gate_is_refused_when_the_plan_is_read(fields, said):
    with pytest.raises(ValidationError, match=said):
        Gate(**fields)


def test_comparisons_default_to_the_parent_and_modules_to_the_candidate_alone():
    assert Gate(metric="reward_win_rate", at_least=0.5).comparator == "parent"
    assert Gate(metric="reward_win_rate", at_least=0.5, against="base").comparator == "base"
    assert Gate(metric="finished_rate", at_least=0.5).comparator is None
    assert Gate(metric="repetition", at_most=0.5).comparator is None
    assert Gate(metric="repetition", at_most=0.5, against="parent").demand == "<= 0.5 against parent"


def test_missing_scores_name_the_gate(tmp_path):
    with pytest.raises(DataError, match=r"gate reward_win_rate: reward of candidate was not measured; the scores hold finished"):
        judge([Gate(metric="reward_win_rate", at_least=0.5)], finished(tmp_path, 2, 2), seed=0)


def test_what_no_gate_asked_for_is_measured_too_and_its_failure_stops_nothing(tmp_path):
    table = [*rows("finished", [1.0, 0.0, 1.0]), *rows("answer_tokens", [0.0, 0.0, 4.0])]
    folder = write(tmp_path / "a", table)
    found = measured(Scores.read({"scores_candidate": folder, "scores_parent": folder}), seed=0, resamples=1000)
    length, rate = found
    assert (rate["metric"], rate["estimate"], rate["items"]) == ("finished_rate", 0.666667, 3)
    assert length["metric"] == "answer_length_ratio"
    assert length["error"] == "the quantity does not exist for some resamples of these 3 conversations; are most of the values 0?"
