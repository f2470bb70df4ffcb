"""METRICS: each one right on a worked-out example, and moved the other way by a wrong one."""

import math

import numpy as np
import pytest
from scoring import rows, write

from evals.estimates import METRICS, RAW, measurable, metric
from evals.scores import Scores
from tasks.core.errors import DataError, SpecError

LOGPS = {
    "candidate": [*rows("chosen_logp", [-10, -10, -10, -10]), *rows("rejected_logp", [-20, -12, -9, -10])],
    "parent": [*rows("chosen_logp", [-11, -11, -11, -11]), *rows("rejected_logp", [-19, -15, -10, -12])],
}  # margins 10 2 -1 0 against 8 4 -1 1: one gained, one lost, one tie, one lost
LONGER = rows("chosen_longer", [1, 0, 0.5, 0], subject="length")
PAIRS = [
    *rows("chosen_reward", [1, 2, 3, 4], subject="reward_model"),
    *rows("rejected_reward", [0, 2, 5, 1], subject="reward_model"),
]
ANSWERS = {
    "candidate": [*rows("reward", [1, 2, 3, 4]), *rows("answer_tokens", [10, 20, 5, 5]), *rows("finished", [1, 1, 0, 1])],
    "parent": [*rows("reward", [0, 2, 5, 1]), *rows("answer_tokens", [10, 10, 10, 20]), *rows("finished", [1, 0, 0, 0])],
}
TEXTS = {
    "candidate": [*rows("answer_nll", [1.0, 2.0], weight=10), *rows("text_nll", [1.0, 1.0], weight=10)],
    "parent": [*rows("answer_nll", [2.0, 2.0], weight=10), *rows("text_nll", [1.0, 0.8], weight=10)],
}
HEADS = {
    "candidate": [
        *rows("label_predicted", [0, 0, 1, 1]), *rows("label_true", [0, 1, 1, 1]),
        *rows("entities_right", [1, 0, 2, 0]), *rows("entities_predicted", [1, 1, 2, 1]), *rows("entities_true", [2, 0, 2, 1]),
        *rows("tags_right", [3, 4, 5, 0]), *rows("tags", [4, 4, 5, 2]),
        *rows("followed_strict", [1, 0, 2, 0]), *rows("instructions_strict", [1, 1, 3, 2]),
        *rows("followed_loose", [1, 1, 2, 0]), *rows("instructions_loose", [1, 1, 3, 2]),
        *rows("answer_words", [9, 3, 2, 4]), *rows("reference_words", [3, 3, 1, 5]),
    ],
}  # fmt: skip
WORKED_OUT = {
    "preference_accuracy": (1 + 0 + 0.5 + 0) / 4,
    "preference_gain_over_length": (0 + 0 + 0 + 0) / 4,
    "reward_accuracy": (1 + 0.5 + 0 + 1) / 4,
    "reward_gain_over_length": (0 + 0.5 - 0.5 + 1) / 4,
    "length_accuracy": (1 + 0 + 0.5 + 0) / 4,
    "reward_win_rate": (1 + 0.5 + 0 + 1) / 4,
    "reward_difference": (1 + 0 - 2 + 3) / 4,
    "answer_perplexity": math.exp(1.5),
    "answer_perplexity_ratio": math.exp(-0.5),
    "text_perplexity": math.e,
    "text_perplexity_ratio": math.exp(0.1),
    "answer_length_ratio": 40 / 50,
    "finished_rate": 3 / 4,
    "macro_f1": (2 * 1 / (2 + 1) + 2 * 2 / (2 + 3)) / 2,
    "entity_f1": 2 * 3 / (5 + 5),
    "tag_accuracy": 12 / 15,
    "instruction_strict": 3 / 7,
    "instruction_loose": 4 / 7,
    "verbosity": 18 / 12,
}


@pytest.fixture
def scores(tmp_path):
    inputs = {"rewards": write(tmp_path / "rewards", [*LONGER, *PAIRS])}
    for who in ("candidate", "parent"):
        inputs[f"scores_{who}"] = write(tmp_path / who, [*LOGPS[who], *ANSWERS[who], *TEXTS[who], *HEADS.get(who, []), *LONGER])
    return Scores.read(inputs)


def value(scores, name, against=None):
    found = metric(name, against)
    return found.sample(scores, against or ("parent" if found.comparative else None)).estimate(0.95, seed=0, resamples=500).value


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_the_worked_out_number(scores, name):
    assert value(scores, name) == pytest.approx(WORKED_OUT[name])


@pytest.mark.parametrize(
    ("name", "spoiled"),
    [
        ("preference_accuracy", {"chosen_logp": -2}),
        ("preference_gain_over_length", {"chosen_logp": -2}),
        ("reward_win_rate", {"reward": -2}),
        ("reward_difference", {"reward": -2}),
        ("answer_perplexity", {"answer_nll": 1}),
        ("answer_perplexity_ratio", {"answer_nll": 1}),
        ("text_perplexity", {"text_nll": 1}),
        ("text_perplexity_ratio", {"text_nll": 1}),
        ("answer_length_ratio", {"answer_tokens": 9}),
        ("finished_rate", {"finished": -1}),
    ],
)
def test_a_worse_candidate_moves_every_metric_the_bad_way(tmp_path, scores, name, spoiled):
    worse = [
        {**line, "value": max(-9.0 * (line["metric"] != "finished"), line["value"] + spoiled.get(line["metric"], 0))}
        for line in [*LOGPS["candidate"], *ANSWERS["candidate"], *TEXTS["candidate"], *LONGER]
    ]
    inputs = {"scores_candidate": write(tmp_path / "worse", worse), "scores_parent": tmp_path / "parent"}
    after, before = value(Scores.read(inputs), name), value(scores, name)
    assert after < before if METRICS[name].better == "higher" else after > before


@pytest.mark.parametrize("name", ["reward_accuracy", "reward_gain_over_length"])
def test_a_worse_reward_model_lowers_its_metrics(tmp_path, scores, name):
    flipped = [{**line, "value": -line["value"]} for line in PAIRS]
    worse = Scores.read({"rewards": write(tmp_path / "flipped", [*LONGER, *flipped])})
    assert value(worse, name) < value(scores, name)


def test_equal_models_are_equal_on_every_comparison(tmp_path):
    folder = write(tmp_path / "one", [*LOGPS["candidate"], *ANSWERS["candidate"], *TEXTS["candidate"]])
    same = Scores.read({"scores_candidate": folder, "scores_parent": folder})
    assert [value(same, name) for name in ("preference_accuracy", "reward_win_rate", "reward_difference")] == [0.5, 0.5, 0]
    assert [value(same, name) for name in ("answer_perplexity_ratio", "text_perplexity_ratio", "answer_length_ratio")] == [
        1,
        1,
        1,
    ]


def test_nan_in_the_scores_is_an_error_for_every_metric(tmp_path):
    gone = [
        {**line, "value": math.nan} if line["item"] == "i001" else line
        for line in [*LOGPS["candidate"], *ANSWERS["candidate"], *TEXTS["candidate"], *HEADS["candidate"], *LONGER, *PAIRS]
    ]
    folder = write(tmp_path / "nan", gone)
    scores = Scores.read({"scores_candidate": folder, "scores_parent": folder})
    for name in METRICS:
        with pytest.raises(DataError, match="NaN"):
            value(scores, name)


def test_other_tokens_make_perplexities_incomparable(tmp_path):
    one = write(tmp_path / "one", rows("text_nll", [1, 2], weight=10))
    two = write(tmp_path / "two", rows("text_nll", [1, 2], weight=12))
    with pytest.raises(DataError, match="different tokens"):
        value(Scores.read({"scores_candidate": one, "scores_parent": two}), "text_perplexity_ratio")


def test_another_chat_template_makes_perplexities_of_answers_incomparable_and_those_of_text_not(tmp_path):
    one = write(tmp_path / "one", [*rows("answer_nll", [1, 2], weight=10), *rows("text_nll", [1, 2], weight=10)])
    scores = Scores.read({"scores_candidate": one, "scores_champion": one}, other_texts=["champion"])
    assert value(scores, "text_perplexity_ratio", "champion") == 1
    with pytest.raises(DataError, match="the champion reads and writes in another chat template than the candidate"):
        value(scores, "answer_perplexity_ratio", "champion")


def test_a_module_is_a_mean_of_the_candidate_or_a_difference(tmp_path):
    one = write(tmp_path / "one", rows("filler_opening", [1, 0, 0, 0]))
    two = write(tmp_path / "two", rows("filler_opening", [1, 1, 0, 1]))
    scores = Scores.read({"scores_candidate": one, "scores_base": two})
    assert value(scores, "filler_opening") == 0.25
    assert value(scores, "filler_opening", "base") == -0.5
    assert metric("filler_opening", None).sample(scores, None).support == (0, 1)
    assert metric("filler_opening", "base").sample(scores, "base").support == (-1, 1)
    assert measurable(scores) == [("filler_opening", None), ("filler_opening", "base")]


def test_module_values_beyond_a_share_have_no_known_range(tmp_path):
    one = write(tmp_path / "one", rows("repetition", [3.0, 0]))
    scores = Scores.read({"scores_candidate": one, "scores_parent": one})
    assert metric("repetition", None).sample(scores, None).support is None
    assert metric("repetition", "parent").sample(scores, "parent").support is None


def test_everything_measurable_is_listed_with_its_comparators(scores):
    assert measurable(scores) == [(name, "parent" if METRICS[name].comparative else None) for name in METRICS]


def test_an_unknown_name_tells_the_nearest(scores):
    with pytest.raises(SpecError, match="reward_winrate: no such metric, did you mean reward_win_rate"):
        metric("reward_winrate", None)
    assert "chosen_logp" in RAW


def test_the_table_is_complete():
    assert set(WORKED_OUT) == set(METRICS)
    assert all(row.meaning and row.unit and np.isin(row.better, ["higher", "lower"]) for row in METRICS.values())
