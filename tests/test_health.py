"""The health card judges planted reward models rightly and for the right reason; the clearance knows nothing of its bounds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy.special import expit
from scoring import row, write

from evals.statistics import Estimate
from tasks.core.build import Workshop
from tasks.core.contract import Run, Stage
from tasks.core.errors import DataError, GateError
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.health import CLEARANCE, HEALTH, Clearance, ClearanceSpec, HealthSpec, health, read_clearance
from tasks.policy import Base, PolicyRecord, write_record
from tasks.tables import write_answers

PAIRS, ANSWERS = 120, 64


class Planted:
    """Inputs of the stage: pairs of known quality and length, and what a reward model of known kind says of them."""

    def __init__(self, root: Path, seed: int = 0, pairs: int = PAIRS) -> None:
        self.root, self.n, self.draw = root, pairs, np.random.default_rng(seed)
        self.quality = self.draw.normal(0, 1, (pairs, 2)) * 1.2
        better = self.draw.random(pairs) < expit(self.quality[:, 0] - self.quality[:, 1])
        self.quality = np.where(better[:, None], self.quality, self.quality[:, ::-1])  # people choose as Bradley and Terry say
        self.characters = self.draw.integers(40, 160, (pairs, 2))
        self.tokens = self.draw.integers(10, 40, ANSWERS)

    def inputs(self, pair_scores=None, answer_scores=None, *, template="t", tokenizer="k") -> dict[str, Path]:
        pair_scores = self.quality if pair_scores is None else np.asarray(pair_scores, dtype=float)
        answers = self.draw.normal(0.3, 1.2, ANSWERS) if answer_scores is None else np.asarray(answer_scores, dtype=float)
        items = [f"p{i:04}" for i in range(self.n)]
        rows = [
            row(f"{side}_reward", item, pair_scores[i, at], subject="reward_model")
            for i, item in enumerate(items)
            for at, side in enumerate(("chosen", "rejected"))
        ]
        gap = np.sign(self.characters[:, 0] - self.characters[:, 1])
        rows += [row("chosen_longer", item, 0.5 + 0.5 * gap[i], subject="length") for i, item in enumerate(items)]
        rows += [row("reward", f"a{i:03}", answers[i], subject="sft") for i in range(ANSWERS)]
        texts = [
            {"id": item, "chosen": "c" * self.characters[i, 0], "rejected": "r" * self.characters[i, 1]}
            for i, item in enumerate(items)
        ]
        said = [
            {"id": f"a{i:03}", "conversation": f"a{i:03}", "task": "", "prompt": [], "answer": "", "tokens": n, "finished": True}
            for i, n in enumerate(self.tokens)
        ]
        (self.root / "answers").mkdir(parents=True, exist_ok=True)
        write_answers(self.root / "answers", said)
        return {
            "scores": write(self.root / "scores", rows),
            "answers": self.root / "answers",
            "preferences": tiny.write_rows(self.root / "pairs", "heldout", texts),
            "reward_model": record(self.root / "judge", "reward", template, tokenizer),
            "policy": record(self.root / "policy", "policy", "t", "k"),
        }


def record(folder: Path, task: str, template: str, tokenizer: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = Base(name="tiny", revision="sha256:0123456789abcdef", files={})
    write_record(folder, PolicyRecord(task=task, base=base, tokenizer=tokenizer, template=template))
    return folder


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


@pytest.fixture
def judge(tmp_path):
    """`judge(inputs, **bounds)`: the card and the stage's metrics."""

    def run(inputs, **bounds):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        metrics = health(HealthSpec(**bounds), inputs, out, Run(tmp_path / "work", tmp_path / "models"))
        return json.loads((out / "health.json").read_text()), metrics

    return run


def reasons(card) -> list[str]:
    """What each reason is about: its first words."""
    return [reason.partition(" is ")[0].partition(" cannot ")[0] for reason in card["reasons"]]


def test_a_calibrated_scorer_is_healthy(planted, judge):
    card, metrics = judge(planted.inputs())
    assert (card["verdict"], card["reasons"]) == ("healthy", [])
    assert [check["holds"] for check in card["checks"]] == [True] * 5
    estimates = card["estimates"]
    assert estimates["slope"]["low"] < 1 < estimates["slope"]["high"]
    right = np.mean(planted.quality[:, 0] > planted.quality[:, 1])
    assert metrics["accuracy"] == estimates["held-out accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    longer = np.mean(np.sign(planted.characters[:, 0] - planted.characters[:, 1]) / 2 + 0.5)
    assert metrics["length_accuracy"] == pytest.approx(max(longer, 1 - longer), abs=1e-6)
    assert card["length_prefers"] == ("longer" if longer >= 0.5 else "shorter")
    assert sum(one["pairs"] for one in card["reliability"]) == metrics["pairs"] == PAIRS
    assert metrics["answers"] == ANSWERS


@pytest.mark.parametrize("seed", range(8))
def test_a_calibrated_scorer_of_100_pairs_passes_whatever_the_draw(tmp_path, judge, seed):
    card, _ = judge(Planted(tmp_path, seed=seed, pairs=100).inputs())
    assert card["verdict"] == "healthy", card["reasons"]


def test_a_scorer_that_is_calibrated_but_for_its_scale_is_healthy_and_its_scale_is_said(planted, judge):
    card, _ = judge(planted.inputs(planted.quality * 8))
    assert card["verdict"] == "healthy"
    assert card["estimates"]["slope"]["high"] < 0.25
    assert card["estimates"]["calibration error"]["low"] > 0.08 > 0.05 < card["estimates"]["overconfidence"]["low"]
    assert "times too far apart" in (planted.root / "out/health.md").read_text()


def test_a_scorer_of_length_is_weak_for_its_length(planted, judge):
    noise = planted.draw.normal(0, 0.3, (PAIRS, 2))
    inputs = planted.inputs(planted.characters / 20 + noise, planted.tokens / 8 + planted.draw.normal(0, 0.2, ANSWERS))
    card, _ = judge(inputs, accuracy=0, length_gain=-1)
    assert card["verdict"] == "weak"
    assert reasons(card) == [
        "rank correlation of margin and length, within pairs",
        "rank correlation of score and length, over the SFT policy's answers",
    ]
    assert "train it on pairs of like length" in card["reasons"][0]


def test_a_scorer_that_fears_length_is_weak_too(planted, judge):
    card, _ = judge(planted.inputs(-planted.characters / 20), accuracy=0, length_gain=-1, calibration=1)
    assert reasons(card) == ["rank correlation of margin and length, within pairs"]
    assert card["estimates"]["rank correlation of margin and length, within pairs"]["value"] < -0.99


def test_a_scorer_that_knows_less_than_length_is_weak_for_that(planted, judge):
    chosen_longer = np.sort(planted.characters, axis=1)[:, ::-1] + np.array([1, 0])  # length alone is always right
    planted.characters = chosen_longer
    card, _ = judge(planted.inputs())
    assert reasons(card) == ["accuracy less that of length alone"]
    planted.characters = chosen_longer[:, ::-1]  # and so is the shorter answer here
    card, _ = judge(planted.inputs())
    assert (reasons(card), card["length_prefers"]) == (["accuracy less that of length alone"], "shorter")


def test_a_random_scorer_is_weak_for_its_accuracy(planted, judge):
    card, _ = judge(planted.inputs(planted.draw.normal(0, 1, (PAIRS, 2))), length_gain=-1)
    assert reasons(card) == ["held-out accuracy"]


def test_an_anti_correlated_scorer_is_weak_for_its_accuracy_and_told_to_train(planted, judge):
    card, _ = judge(planted.inputs(-planted.quality), length_gain=-1)
    assert reasons(card) == ["held-out accuracy"]
    assert "train it on more or cleaner pairs" in card["reasons"][0]
    assert card["estimates"]["slope"]["high"] < 0


def test_a_scorer_that_is_wrong_where_it_is_surest_is_weak_for_its_calibration(planted, judge):
    sure = np.arange(PAIRS) % 3 == 0
    margins = np.where(sure, -6.0, 0.5) + planted.draw.normal(0, 0.1, PAIRS)
    card, _ = judge(planted.inputs(np.stack([margins, np.zeros(PAIRS)], axis=1)), same=1)
    assert reasons(card) == ["calibration error after rescaling"]
    assert "not right more often where it is surer" in card["reasons"][0]


def test_a_constant_scorer_is_weak_because_its_scores_do_not_vary(planted, judge):
    card, metrics = judge(planted.inputs(np.full((PAIRS, 2), 0.25), np.full(ANSWERS, 0.25)), accuracy=0, length_gain=-1)
    assert len(card["reasons"]) == 2
    assert card["reasons"][0].startswith(f"100% of its scores of {2 * PAIRS} texts of held-out pairs are the same number")
    assert card["reasons"][1].startswith(f"100% of its scores of {ANSWERS} answers of the SFT policy are the same number")
    assert (metrics["accuracy"], card["estimates"]["slope"], metrics["length_correlation_pairs"]) == (0.5, None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_weak_for_that_alone_and_the_card_is_json(planted, judge, bad):
    scores = planted.quality.copy()
    scores[3, 0] = scores[5, 1] = bad
    answers = np.r_[bad, np.ones(ANSWERS - 1)]
    card, metrics = judge(planted.inputs(scores, answers))
    assert card["reasons"] == [
        f"its scores of 2 of {2 * PAIRS} texts of held-out pairs are NaN or infinite: train it again at a lower learning rate",
        f"its scores of 1 of {ANSWERS} answers of the SFT policy are NaN or infinite: train it again at a lower learning rate",
    ]
    assert card["scores"]["chosen"]["not_numbers"] == 1
    assert metrics["accuracy"] is None


def test_too_few_pairs_are_weak_and_it_says_how_many_would_do(tmp_path, judge):
    few = Planted(tmp_path, pairs=12)
    few.quality = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 4) * few.draw.normal(1, 0.1, (12, 1))
    card, _ = judge(few.inputs(), length_gain=-1, length_correlation=1, calibration=1, same=1)
    (reason,) = card["reasons"]
    assert reason.startswith("held-out accuracy is 0.667 [")
    assert "on 12 pairs, and all of that must be at least 0.5: too few to tell" in reason
    needed = int(reason.rpartition("about ")[2].partition(" pairs")[0])
    assert 40 < needed < 120  # about (2 * 1.96 * 0.47 / 0.167)^2 / ... : tens, not 12 and not thousands


def test_the_pairs_of_one_conversation_are_refused_as_evidence(tmp_path, judge):
    few = Planted(tmp_path, pairs=1)
    card, _ = judge(few.inputs())
    assert card["verdict"] == "weak"
    assert "held-out accuracy cannot be measured: 1 items in 1 conversation" in card["reasons"][0]


def test_an_interval_that_is_not_known_is_null_in_the_card_and_ends_no_run(planted, judge, monkeypatch):
    measured = []

    def unknown(margins, clusters):
        measured.append(len(margins))
        return Estimate(0.2, -math.inf, math.inf, 0.95, 0.0, PAIRS, PAIRS)

    monkeypatch.setattr("tasks.health.brier", unknown)
    card, _ = judge(planted.inputs())
    assert (card["verdict"], measured) == ("healthy", [PAIRS])
    assert card["estimates"]["Brier score"] == {
        "value": 0.2, "low": None, "high": None, "smallest_effect": None, "items": PAIRS, "clusters": PAIRS,
    }  # fmt: skip
    assert f"|  | Brier score |  | 0.200 | [?, ?] | {PAIRS} | ? |" in (planted.root / "out/health.md").read_text()


def test_a_bound_on_an_interval_that_is_not_known_does_not_hold(planted, judge, monkeypatch):
    name = "rank correlation of margin and length, within pairs"
    unknown = Estimate(0.1, -math.inf, math.inf, 0.95, 0.0, PAIRS, PAIRS)
    monkeypatch.setattr("tasks.health.rank_correlation", lambda *_: unknown)
    card, _ = judge(planted.inputs())
    assert card["reasons"][0] == (
        f"{name} is 0.100 [?, ?] at 95% on {PAIRS} pairs, and all of that must be between -0.8 and 0.8: too few to tell, as they "
        "leave its interval open; give more that differ"
    )


def test_statistics_of_scores_are_those_of_numpy(planted, judge):
    answers = np.r_[np.zeros(16), np.arange(48)] / 7
    card, _ = judge(planted.inputs(None, answers))
    found = card["scores"]["answers"]
    assert found["count"] == 64
    assert (found["mean"], found["std"]) == (pytest.approx(answers.mean(), rel=1e-5), pytest.approx(answers.std(), rel=1e-5))
    assert (found["min"], found["max"], found["same"]) == (0, pytest.approx(47 / 7, rel=1e-5), 17 / 64)
    assert found["quantiles"]["0.5"] == pytest.approx(np.median(answers), rel=1e-5)


def test_a_tokenizer_of_its_own_is_said_and_allowed(planted, judge):
    card, _ = judge(planted.inputs(template="other", tokenizer="other"))
    assert (card["verdict"], card["agreement"]) == ("healthy", {"base": True, "tokenizer": False, "template": False})
    page = (planted.root / "out/health.md").read_text()
    assert "a tokenizer of its own, so texts are tokenised again for it" in page
    card, _ = judge(planted.inputs())
    assert card["agreement"] == {"base": True, "tokenizer": True, "template": True}


def test_scores_of_other_data_are_refused(planted, judge):
    inputs = planted.inputs()
    tiny.write_rows(planted.root / "other", "heldout", [{"id": "x", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match="pair p0000 was scored, and the data given beside the scores lacks it"):
        judge({**inputs, "preferences": planted.root / "other"})


# -- the clearance -----------------------------------------------------------------------------------------------


def _copied(spec: Spec, inputs, out: Path, run: Run):
    (out / "policy.json").write_text((inputs["clearance"] / "clearance.json").read_text())
    return {}


LEARNER = Stage("learner", 1, "policy", _copied)


def chain(shop: Workshop, inputs, spec: HealthSpec):
    """Card, clearance, and a policy that learns by it, each with whether it was built now."""
    card, one = shop.build(HEALTH, spec, inputs)
    cleared, two = shop.build(CLEARANCE, spec.clearance(), {"health": card})
    policy, three = shop.build(LEARNER, Spec(), {"clearance": cleared})
    return (card, cleared, policy), (one, two, three)


def test_another_bound_judges_again_and_trains_nothing_again(planted, tmp_path):
    shop, inputs = Workshop(Store(tmp_path / "store"), tmp_path / "models"), planted.inputs()
    first, built = chain(shop, inputs, HealthSpec())
    assert built == (True, True, True)
    assert read_clearance(first[1].path) == Clearance(first[1].metrics["mean"], first[1].metrics["std"], ANSWERS)
    assert json.loads((first[1].path / "clearance.json").read_text()).keys() == {"mean", "std", "answers"}
    for spec in (HealthSpec(accuracy=0.55, length_gain=-0.2, calibration=0.3), HealthSpec(level=0.9, seed=3)):
        again, built = chain(shop, inputs, spec)
        assert built == (True, True, False)  # judged again, cleared again, and the same policy
        assert (again[1].digest, again[2].key) == (first[1].digest, first[2].key)
        assert again[0].digest != first[0].digest


def test_accepting_a_weak_model_clears_to_the_same_numbers(planted, tmp_path):
    shop, inputs = Workshop(Store(tmp_path / "store"), tmp_path / "models"), planted.inputs()
    first, _ = chain(shop, inputs, HealthSpec())
    with pytest.raises(
        GateError, match=r"is weak, so no policy learns from it: held-out accuracy is .* `health.accept_weak: true`"
    ):
        chain(shop, inputs, HealthSpec(accuracy=0.99))
    accepted, built = chain(shop, inputs, HealthSpec(accuracy=0.99, accept_weak=True))
    assert (accepted[1].digest, built[2]) == (first[1].digest, False)


@pytest.mark.parametrize(
    ("answers", "what"), [(np.ones(ANSWERS), "do not vary"), (np.full(ANSWERS, np.nan), "are not all numbers")]
)
def test_scores_that_cannot_be_normalised_are_cleared_for_nobody(planted, tmp_path, answers, what):
    shop = Workshop(Store(tmp_path / "store"), tmp_path / "models")
    with pytest.raises(GateError, match=f"answers of the SFT policy {what}, so they cannot be normalised"):
        chain(shop, planted.inputs(None, answers), HealthSpec(accept_weak=True))


def test_the_card_is_the_same_byte_for_byte(planted, tmp_path):
    inputs = planted.inputs()
    one, _ = Workshop(Store(tmp_path / "one"), tmp_path).build(HEALTH, HealthSpec(), inputs)
    two, _ = Workshop(Store(tmp_path / "two"), tmp_path).build(HEALTH, HealthSpec(), inputs)
    assert one.digest == two.digest


def test_a_folder_without_a_clearance_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a clearance"):
        read_clearance(tmp_path)


def test_the_clearance_follows_the_plan():
    assert HealthSpec(accept_weak=True).clearance() == ClearanceSpec(accept_weak=True)
