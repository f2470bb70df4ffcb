"""Gates: judged on the pessimistic end, corrected for their number, and said in one sentence with the numbers."""

import pytest
from pydantic import ValidationError
from scoring import rows, write

from evals.gates import Gate, corrected, judge, measured, overall
from evals.scores import Scores
from tasks.core.errors import DataError


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
    assert corrected([gate] * 5) == [0.99] * 5
    assert among.estimate.low < alone.estimate.low
    assert (alone.verdict, among.verdict) == ("pass", "review")


def test_sentences_give_need_found_interval_level_and_count(tmp_path):
    shared = write(tmp_path / "c", rows("reward", [1.0] * 50 + [0.0] * 30))
    other = write(tmp_path / "p", rows("reward", [0.0] * 50 + [1.0] * 30))
    scores = Scores.read({"scores_candidate": shared, "scores_parent": other})
    gate = Gate(metric="reward_win_rate", at_least=0.5)
    third = judge([gate] * 3, scores, seed=0)[0]
    assert third.sentence == (
        "reward_win_rate: need >= 0.5 against parent, got 0.625 [0.488, 0.750] at 98.3% on n=80: review "
        "(the smallest effect this sample could have seen is 0.179; about 164 items would settle it)"
    )
    loose = judge([Gate(metric="reward_win_rate", at_least=0.4, at_most=0.8)], scores, seed=0)[0]
    assert (
        loose.sentence == "reward_win_rate: need >= 0.4 and <= 0.8 against parent, got 0.625 [0.512, 0.725] at 95% on n=80: pass"
    )


def test_sentences_count_conversations_and_say_when_it_lies_on_the_bound(tmp_path):
    table = [{**line, "cluster": f"c{i // 2}"} for i, line in enumerate(rows("finished", [1.0, 0.0] * 20))]
    scores = Scores.read({"scores_candidate": write(tmp_path / "a", table)})
    found = one(scores, at_least=0.5)
    assert found.sentence == (
        "finished_rate: need >= 0.5, got 0.500 [0.416, 0.584] at 95% on n=40 in 20 conversations: review "
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
        "smallest_effect": pytest.approx(0.114, abs=0.003), "items_needed": found.items_needed,
    }  # fmt: skip
    assert 480 < found.items_needed < 560


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metric": "reward_winrate", "at_least": 0.5}, "gate reward_winrate: no such metric, did you mean reward_win_rate"),
        ({"metric": "zzz", "at_least": 0.5}, "there are preference_accuracy, .*repetition"),
        ({"metric": "finished_rate"}, "neither at_least nor at_most is set"),
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
