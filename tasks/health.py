# pyright: basic
"""Before a policy learns from a reward model: the model's health card, and the clearance to use it.

The card measures and judges; the clearance stops the run on a weak model, once the card is there to be read.  The clearance holds
nothing but how scores are normalised, so that another bound judges afresh and trains nothing again.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from evals.calibration import Reliability, brier, rank_correlation, slope
from evals.gates import known, percent, rounded, shown
from evals.scores import Scores, Series
from evals.statistics import Estimate, Floats, Sample, difference, mean, shares
from tasks.core.contract import Metrics, Run, Stage
from tasks.core.errors import DataError, GateError
from tasks.core.files import write_json
from tasks.core.spec import Json, Spec
from tasks.health_report import markdown
from tasks.measure import LENGTH
from tasks.policy import read_record
from tasks.tables import ANSWERS_FILE, answer_item, read_rows

Share = Annotated[float, Field(ge=0, le=1)]
CARD = "health.json"
PAGE = "health.md"
CLEARANCE_FILE = "clearance.json"
SUBJECT = "sft"
"""whose answers are scored"""
RESAMPLES = 2_000
"""per interval"""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class ClearanceSpec(Spec):
    """Whether a policy may learn from the reward model."""

    accept_weak: bool = False
    """go on with a reward model that its health card calls weak"""


class HealthSpec(Spec):
    """What a reward model must show before a policy may learn from it; each bound is held by the worse end of an interval."""

    accuracy: Share = 0.5
    """the share of held-out pairs it ranks rightly must reach this"""
    length_gain: Annotated[float, Field(ge=-1, le=1)] = -0.1
    """that share, less what length alone ranks rightly (longer answer, or shorter if that does better), must reach this"""
    length_correlation: Share = 0.8
    """its scores' rank correlation with length, within pairs and over answers, must lie between this and its negative"""
    calibration: Share = 0.25
    """its calibration error on pairs, once its scores are rescaled to fit best, must not exceed this: scores are normalised
    before they are learned from, so scale is free, but larger margins must be right more often"""
    same: Share = 0.5
    """no more than this share of the pairs' scores, or of the answers', may be one and the same number"""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """of the intervals"""
    seed: NonNegativeInt = 0
    """of the resampling"""
    answers: PositiveInt = 64
    """of the SFT policy, scored to see how scores are distributed and to normalise them"""
    accept_weak: bool = False
    """go on with a weak one all the same"""

    def clearance(self) -> ClearanceSpec:
        """What the clearance is decided by."""
        return ClearanceSpec(accept_weak=self.accept_weak)


class Clearance(NamedTuple):
    """How scores are normalised: by those of the SFT policy's own answers."""

    mean: float
    std: float
    """above 0"""
    answers: int


def read_clearance(folder: Path) -> Clearance:
    """The clearance in the artifact `folder`.  Raises DataError if it is none."""
    path = folder / CLEARANCE_FILE
    try:
        return Clearance(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a clearance ({error}); was one given as input?") from error


# -- what is measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Seen:
    """The scores, beside what they are compared with."""

    chosen: Series
    rejected: Series
    longer: Series
    length_gap: Floats
    """characters of chosen less those of rejected; (pairs,)"""
    answers: Series
    tokens: Floats
    """(answers,)"""

    @classmethod
    def read(cls, inputs: Mapping[str, Path]) -> "_Seen":
        """Item for item; DataError where an item is missing anywhere."""
        scores = Scores.read({"scores": inputs["scores"]})
        pairs = scores.aligned(("reward_model", "chosen_reward"), ("reward_model", "rejected_reward"), (LENGTH, "chosen_longer"))
        (answers,) = scores.aligned((SUBJECT, "reward"))
        gaps = {
            row["id"]: len(row["chosen"]) - len(row["rejected"]) for row in read_rows(inputs["preferences"] / "heldout.parquet")
        }
        tokens = {answer_item(row): row["tokens"] for row in read_rows(inputs["answers"] / ANSWERS_FILE)}
        chosen, rejected, longer = pairs
        gap = _looked_up(gaps, chosen, "pair")
        return cls(chosen, rejected, longer, gap, answers, _looked_up(tokens, answers, "answer"))

    @property
    def margins(self) -> Floats:
        """(pairs,)"""
        return difference(self.chosen.values, self.rejected.values)


def _looked_up(known: Mapping[str, float], series: Series, what: str) -> Floats:
    if missing := [item for item in series.items if item not in known]:
        raise DataError(
            f"{what} {missing[0]} was scored, and the data given beside the scores lacks it; were they made of other data?"
        )
    return np.array([known[item] for item in series.items], dtype=np.float64)


@dataclass
class _Card:
    """Estimates by name, and what is wrong."""

    spec: HealthSpec
    found: dict[str, Estimate | None] = field(default_factory=dict)
    checks: list[dict[str, Json]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def measure(self, name: str, of: Callable[[], Sample | Estimate | None]) -> Estimate | None:
        """Estimate `name`; what cannot be estimated is a reason."""
        try:
            made = of()
            if isinstance(made, Sample):
                made = made.estimate(self.spec.level, seed=self.spec.seed, resamples=RESAMPLES)
        except DataError as error:
            made = None
            self.reasons.append(f"{name} cannot be measured: {error}")
        self.found[name] = made
        return made

    def check(self, name: str, need: str, room: Callable[[float], float], bound: float, advice: str, unit: str = "pairs") -> None:
        """Demand `room`, a distance to the bound that is negative beyond it, of both ends of the interval of `name`."""
        found = self.found.get(name)
        if found is None:  # not measured: if it should have been, a reason says why not
            return
        holds = all(room(end) >= 0 for end in (found.low, found.high))
        self.checks.append({"check": name, "need": need, "holds": holds})
        if not holds:
            at = f"[{shown(found.low, [bound])}, {shown(found.high, [bound])}] at {percent(found.level)}"
            said = f"{name} is {shown(found.value, [bound])} {at} on {found.items} {unit}, and all of that must be {need}"
            if room(found.value) >= 0 and not math.isfinite(found.smallest_effect()):
                advice = "too few to tell, as they leave its interval open; give more that differ"
            elif room(found.value) >= 0:
                needed = found.items_needed(room(found.value))
                more = f"about {needed} {unit} would settle it" if needed else "it lies on the bound"
                advice = f"too few to tell, as they show nothing smaller than {found.smallest_effect():.2g}; {more}"
            self.reasons.append(f"{said}: {advice}")


ACCURACY, LENGTH_ACCURACY, GAIN = "held-out accuracy", "accuracy of length alone", "accuracy less that of length alone"
PAIR_LENGTH = "rank correlation of margin and length, within pairs"
ANSWER_LENGTH = "rank correlation of score and length, over the SFT policy's answers"
ERROR, RESCALED = "calibration error", "calibration error after rescaling"
OVER, BRIER, SLOPE = "overconfidence", "Brier score", "slope"


def health(spec: HealthSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `health.json` and `health.md`.  Raises DataError where scores, pairs and answers do not belong together."""
    seen = _Seen.read(inputs)
    card = _Card(spec)
    scores: dict[str, dict[str, Json]] = {
        "chosen": _described(seen.chosen.values),
        "rejected": _described(seen.rejected.values),
        "margin": _described(seen.margins),
        "answers": _described(seen.answers.values),
    }
    _numbers_vary(card, seen)
    bins = _pairs(card, seen) if scores["margin"]["not_numbers"] == 0 else []
    if scores["answers"]["not_numbers"] == 0:
        answers = (seen.answers.values, seen.tokens, seen.answers.clusters)
        card.measure(ANSWER_LENGTH, lambda: rank_correlation(*answers, spec.level))
    _judge(card)
    record: dict[str, Json] = {
        "verdict": "weak" if card.reasons else "healthy",
        "reasons": [*card.reasons],
        "checks": [*card.checks],
        "estimates": {name: _row(found) for name, found in card.found.items()},
        "length_prefers": _direction(seen),
        "reliability": bins,
        "scores": {**scores},
        "agreement": _agreement(inputs),
        "level": spec.level,
        "seed": spec.seed,
        "resamples": RESAMPLES,
    }
    write_json(out / CARD, record)
    (out / PAGE).write_text(markdown(record), encoding="utf-8")
    for reason in card.reasons:
        run.log(reason)
    value = {name: known(found.value) if found else None for name, found in card.found.items()}
    return {
        "verdict": record["verdict"],
        "accuracy": value.get(ACCURACY),
        "length_accuracy": value.get(LENGTH_ACCURACY),
        "calibration_error": value.get(ERROR),
        "calibration_error_rescaled": value.get(RESCALED),
        "length_correlation_pairs": value.get(PAIR_LENGTH),
        "length_correlation_answers": value.get(ANSWER_LENGTH),
        "pairs": len(seen.chosen.items),
        "answers": len(seen.answers.items),
    }


def _numbers_vary(card: _Card, seen: _Seen) -> None:
    """Scores are numbers, and not all the same one."""
    pairs = np.concatenate([seen.chosen.values, seen.rejected.values])
    for what, values in (("texts of held-out pairs", pairs), ("answers of the SFT policy", seen.answers.values)):
        about = _described(values)
        if bad := about["not_numbers"]:
            card.reasons.append(
                f"its scores of {bad} of {len(values)} {what} are NaN or infinite: train it again at a lower learning rate"
            )
        elif (same := about["same"]) > card.spec.same:
            card.reasons.append(
                f"{percent(same)} of its scores of {len(values)} {what} are the same number, and no more than "
                f"{percent(card.spec.same)} may be: it tells them apart no better than a constant would; train it for longer, or "
                "look whether the texts differ at all"
            )


def _pairs(card: _Card, seen: _Seen) -> list[Json]:
    """Everything that is estimated on pairs; returns the bins of the reliability."""
    margins, clusters, level = seen.margins, seen.chosen.clusters, card.spec.level
    longer = seen.longer.values if _direction(seen) == "longer" else 1 - seen.longer.values
    right = shares(margins)
    card.measure(ACCURACY, lambda: mean(right, clusters, support=(0, 1)))
    card.measure(LENGTH_ACCURACY, lambda: mean(longer, clusters, support=(0, 1)))
    card.measure(GAIN, lambda: mean(difference(right, longer), clusters, support=(-1, 1)))
    card.measure(PAIR_LENGTH, lambda: rank_correlation(margins, seen.length_gap, clusters, level))
    reliability = Reliability.of(margins, clusters)
    card.measure(ERROR, reliability.error)
    card.measure(OVER, reliability.overconfidence)
    card.measure(BRIER, lambda: brier(margins, clusters))
    best = card.measure(SLOPE, lambda: slope(margins, clusters, level))
    if best:  # else any larger scale fits better, and the error is that of the bins that are wrong
        card.measure(RESCALED, lambda: Reliability.of(margins, clusters, best.value).error())
    return [{**one._asdict()} for one in reliability.bins()]


def _direction(seen: _Seen) -> str:
    """Which answer length alone would take: whichever does better on these pairs, so that the baseline is no straw man."""
    return "longer" if seen.longer.values.mean() >= 0.5 else "shorter"


def _judge(card: _Card) -> None:
    spec = card.spec
    bound = spec.accuracy
    card.check(ACCURACY, f"at least {bound:g}", lambda x: x - bound, bound, "train it on more or cleaner pairs, or for longer")
    gain = spec.length_gain
    card.check(
        GAIN, f"at least {gain:g}", lambda x: x - gain, gain, "it knows less than length does; train it on pairs of like length"
    )
    reach = spec.length_correlation
    for name, unit in ((PAIR_LENGTH, "pairs"), (ANSWER_LENGTH, "answers")):
        advice = "it scores length more than anything else; train it on pairs of like length"
        card.check(name, f"between {-reach:g} and {reach:g}", lambda x: reach - abs(x), reach, advice, unit)
    most = spec.calibration
    advice = "it is not right more often where it is surer; train it for fewer epochs, or look at the pairs of largest margins"
    card.check(RESCALED, f"at most {most:g}", lambda x: most - x, most, advice)


def _described(values: Floats) -> dict[str, Any]:
    """Statistics of finite scores; `same`: the share of the most frequent number; std is of the population."""
    finite = values[np.isfinite(values)]
    bad = len(values) - len(finite)
    if not len(finite):
        return {"count": len(values), "not_numbers": bad}
    quantiles = {f"{quantile:g}": rounded(float(np.quantile(finite, quantile))) for quantile in _QUANTILES}
    return {
        "count": len(values),
        "not_numbers": bad,
        "mean": rounded(float(finite.mean())),
        "std": rounded(float(finite.std())),
        "min": rounded(float(finite.min())),
        "max": rounded(float(finite.max())),
        "quantiles": quantiles,
        "same": rounded(float(np.unique(finite, return_counts=True)[1].max() / len(finite))),
    }


def _row(found: Estimate | None) -> Json:
    if found is None:
        return None
    numbers = {"value": found.value, "low": found.low, "high": found.high, "smallest_effect": found.smallest_effect()}
    return {**{name: known(number) for name, number in numbers.items()}, "items": found.items, "clusters": found.clusters}


def _agreement(inputs: Mapping[str, Path]) -> dict[str, Json]:
    """Whether the reward model reads texts as the policy does.  It may not: then they are tokenised again, from their text."""
    judge, policy = read_record(inputs["reward_model"]), read_record(inputs["policy"])
    return {
        "base": judge.base.revision == policy.base.revision,
        "tokenizer": judge.tokenizer == policy.tokenizer,
        "template": judge.template == policy.template,
    }


def clear(spec: ClearanceSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `clearance.json`: how to normalise scores.  Raises GateError for a weak model."""
    card = json.loads((inputs["health"] / CARD).read_text(encoding="utf-8"))
    if card["verdict"] != "healthy":
        if not spec.accept_weak:
            raise GateError(
                f"the reward model is weak, so no policy learns from it: {'; '.join(card['reasons'])} (its health card has the "
                "numbers; `health.accept_weak: true` goes on all the same)"
            )
        run.log(f"weak, and accepted all the same: {'; '.join(card['reasons'])}")
    answers = card["scores"]["answers"]
    if answers["not_numbers"] or answers["std"] <= 0:
        what = "are not all numbers" if answers["not_numbers"] else "do not vary"
        raise GateError(
            f"the reward model's scores of {answers['count']} answers of the SFT policy {what}, so they cannot be normalised and "
            "no policy can learn from them, accepted or not; train it again, or use rule rewards"
        )
    clearance = Clearance(answers["mean"], answers["std"], answers["count"])
    write_json(out / CLEARANCE_FILE, clearance._asdict())
    return {**clearance._asdict()}


HEALTH = Stage("health", 2, "health", health)
"""inputs: scores (of pairs and of answers_sft), answers (of the SFT policy), reward_model, policy, preferences"""
CLEARANCE = Stage("clearance", 1, "health", clear)
"""inputs: health"""
