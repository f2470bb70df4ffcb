"""Metrics of task heads: against numbers worked out by hand, slow versions written another way, and as a gate sees them."""

import random
from collections import Counter

import numpy as np
import pytest
from scoring import row, rows, write

from evals import modules
from evals.estimates import measurable, metric
from evals.gates import Gate, judge
from evals.scores import Scores
from evals.statistics import contrast, macro_f1, mean
from tasks.core.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


def run(name, answers, references):
    return modules.columns(name, answers, references, [""] * len(answers))


def whole(name, answers, references):
    import evaluate

    return evaluate.load(str(modules.FOLDER / name / f"{name}.py")).compute(predictions=answers, references=references)[name]


def slow_macro_f1(predicted, true):
    found = []
    for label in set(predicted) | set(true):
        tp = sum(p == label and t == label for p, t in zip(predicted, true, strict=True))
        fp = sum(p == label and t != label for p, t in zip(predicted, true, strict=True))
        fn = sum(p != label and t == label for p, t in zip(predicted, true, strict=True))
        precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
        found.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(found) / len(found)


def slow_spans(tags):
    """By trying every stretch: it begins an entity, goes on to its end, and cannot be longer."""
    found = set()
    for start in range(len(tags)):
        place, _, kind = tags[start].partition("-")
        begins = place == "B" or (place == "I" and not (start and tags[start - 1] in (f"B-{kind}", f"I-{kind}")))
        if not begins:
            continue
        end = start + 1
        while end < len(tags) and tags[end] == f"I-{kind}":
            end += 1
        found.add((start, end, kind))
    return found


def test_accuracy_forgives_white_space_and_nothing_else():
    assert run("accuracy", ["a", " b", "A", "c"], ["a", "b", "a", ""]) == {"accuracy": [1, 1, 0, 0]}


def test_macro_f1_weighs_labels_alike_and_counts_one_that_is_never_predicted():
    predicted, true = ["a", "a", "a", "b"], ["a", "a", "c", "b"]
    assert whole("macro_f1", predicted, true) == pytest.approx((2 * 2 / (3 + 2) + 1 + 0) / 3)
    assert run("macro_f1", predicted, true) == {"label_predicted": [0, 0, 0, 1], "label_true": [0, 0, 2, 1]}


def test_macro_f1_agrees_with_the_slow_one_in_the_module_and_in_the_estimate():
    draw = random.Random(1)
    for _ in range(20):
        predicted, true = ([draw.choice("abcd") for _ in range(12)] for _ in range(2))
        assert whole("macro_f1", predicted, true) == pytest.approx(slow_macro_f1(predicted, true))
        numbers = [np.array([float("abcd".index(label)) for label in labels]) for labels in (predicted, true)]
        sample = macro_f1(*numbers, np.array([str(i) for i in range(12)]))
        assert sample.of_totals(*(column.sum() for column in sample.columns)) == pytest.approx(slow_macro_f1(predicted, true))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-LOC", {(0, 1, "PER"), (1, 2, "LOC")}),
        ("B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
        ("S-PER B-LOC E-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),
    ],
)
def test_an_entity_is_its_span_and_its_type(tags, spans):
    assert run("entity_f1", [tags], [tags])["entities_right"] == [len(spans)]
    if "S-" not in tags:
        assert slow_spans(tags.split()) == spans
    shorter = run("entity_f1", [tags], ["B-PER O O"[: len(tags)]])
    assert shorter["entities_right"] == [float((0, 1, "PER") in spans)]


def test_entity_f1_agrees_with_the_slow_one():
    draw = random.Random(2)
    pairs = [[[draw.choice(["O", "O", "B-X", "I-X", "I-Y"]) for _ in range(7)] for _ in range(2)] for _ in range(30)]
    right = sum(len(slow_spans(a) & slow_spans(b)) for a, b in pairs)
    both = sum(len(slow_spans(a)) + len(slow_spans(b)) for a, b in pairs)
    texts = [[" ".join(tags) for tags in side] for side in zip(*pairs, strict=True)]
    assert whole("entity_f1", *texts) == pytest.approx(2 * right / both)
    counts = run("entity_f1", *texts)
    assert (sum(counts["entities_right"]), sum(counts["entities_predicted"]) + sum(counts["entities_true"])) == (right, both)


def test_no_entity_anywhere_is_zero_and_not_an_error():
    assert whole("entity_f1", ["O O"], ["O"]) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat!", "cat", 1),
        ("a black cat", "the cat sat", 2 * 1 / 4),
        ("cat cat", "cat", 2 * 1 / 3),
        ("北京市", "北京", 2 * 2 / 5),
        ("", "", 1),
        ("x", "", 0),
        ("theatre", "atre", 0),
    ],
)
def test_token_f1_is_the_overlap_of_words(answer, reference, f1):
    assert run("token_f1", [answer], [reference]) == {"token_f1": [pytest.approx(f1)]}


def table(predicted, true, subject=""):
    count = Counter([*predicted, *true])
    number = {label: i for i, label in enumerate(sorted(count))}
    return [
        *rows("label_predicted", [number[label] for label in predicted], subject=subject),
        *rows("label_true", [number[label] for label in true], subject=subject),
        *rows("accuracy", [float(p == t) for p, t in zip(predicted, true, strict=True)], subject=subject),
    ]


def test_against_majority_is_the_difference_on_the_same_items(tmp_path):
    true = list("aaabbbaaba")
    folder = write(tmp_path / "s", [*table(list("aabbbbaaba"), true), *table(["a"] * 10, true, "majority")])
    scores = Scores.read({"scores_candidate": folder})
    gain = metric("macro_f1", "majority").sample(scores, "majority").estimate(0.95, seed=0, resamples=2000)
    assert gain.value == pytest.approx(slow_macro_f1("aabbbbaaba", true) - slow_macro_f1("a" * 10, true))
    assert gain.low < gain.value < gain.high <= 1
    accuracy = metric("accuracy", "majority").sample(scores, "majority").estimate(0.95, seed=0, resamples=2000)
    assert accuracy.value == pytest.approx(0.9 - 0.6)
    assert measurable(scores) == [
        ("macro_f1", None), ("macro_f1", "majority"), ("accuracy", None), ("accuracy", "majority"),
    ]  # fmt: skip


def test_a_gate_on_macro_f1_judges_the_pessimistic_end(tmp_path):
    draw = random.Random(3)
    true = [draw.choice("ab") for _ in range(200)]
    predicted = [label if draw.random() < 0.9 else "a" for label in true]
    scores = Scores.read({"scores_candidate": write(tmp_path / "s", table(predicted, true))})
    low, high = (judge([Gate(metric="macro_f1", at_least=bound)], scores, seed=0, resamples=2000)[0] for bound in (0.7, 0.99))
    assert (low.verdict, high.verdict) == ("pass", "fail")
    assert low.estimate.low < low.estimate.value == pytest.approx(slow_macro_f1(predicted, true))


def test_the_interval_of_macro_f1_is_that_of_resampled_items():
    draw = np.random.default_rng(0)
    true = draw.integers(0, 3, 60).astype(float)
    predicted = np.where(draw.random(60) < 0.7, true, draw.integers(0, 3, 60)).astype(float)
    found = macro_f1(predicted, true, np.array([f"{i:03}" for i in range(60)])).estimate(0.95, seed=1, resamples=4000)
    drawn = []
    for _ in range(2000):
        i = draw.integers(0, 60, 60)
        drawn.append(slow_macro_f1(predicted[i].tolist(), true[i].tolist()))
    assert found.error == pytest.approx(np.std(drawn), rel=0.1)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)


def test_many_labels_fit_into_memory_and_the_cut_changes_nothing():
    draw = np.random.default_rng(0)
    sample = macro_f1(*(draw.integers(0, 30, 50).astype(float) for _ in range(2)), np.array([f"{i:03}" for i in range(50)]))
    assert sample.estimate(0.9, seed=0, resamples=1000) == sample.estimate(0.9, seed=0, resamples=1000, batch=17)


def test_a_contrast_wants_the_same_items():
    one, two = (mean(np.array([1.0, 0.0]), np.array(names)) for names in (["a", "b"], ["a", "c"]))
    with pytest.raises(DataError, match="not measured on the same items"):
        contrast(one, two)


def test_counts_of_another_subject_need_the_same_items(tmp_path):
    folder = write(tmp_path / "s", [row("accuracy", "x", 1), row("accuracy", "y", 1, subject="majority")])
    with pytest.raises(DataError, match="not measured on the same items"):
        metric("accuracy", "majority").sample(Scores.read({"scores_candidate": folder}), "majority")
