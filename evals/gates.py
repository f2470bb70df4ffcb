"""Gates: bounds on metrics, judged on the pessimistic end of an interval.

Pass needs the whole interval on the right side of the bound, fail the whole interval on the wrong side; between them a person
decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from evals.estimates import Against, measurable, metric
from evals.scores import Scores
from evals.statistics import RESAMPLES, Estimate
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import Json, Spec

Verdict = Literal["pass", "review", "fail"]
_DIGITS = 6


class Gate(Spec):
    """What a release must show.  Example: `{metric: reward_win_rate, at_least: 0.5, against: parent}`."""

    metric: str
    """a row of `evals.estimates.METRICS`, or a module in `evals/metrics`"""
    at_least: float | None = None
    """the metric must not be below this"""
    at_most: float | None = None
    """the metric must not be above this"""
    against: Against | None = None
    """whom the candidate is compared with: parent (what DPO, or SFT alone, started from; the default of a comparison) or base"""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """coverage of all gates' intervals together, as if every gate had this level"""
    note: str = ""
    """why it is asked for; printed with the verdict"""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        where = f"gate {self.metric}"  # ValueError is what pydantic collects, with the place in the plan
        try:
            known = metric(self.metric, self.against)
        except SpecError as error:
            raise ValueError(f"gate {error}") from error
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"{where}: neither at_least nor at_most is set, so it could never say no")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"{where}: at_least {self.at_least:g} is above at_most {self.at_most:g}, so it could never pass")
        if self.against and not known.comparative:
            raise ValueError(f"{where}: it is measured on the candidate alone; leave out against: {self.against}")
        return self

    @property
    def comparator(self) -> Against | None:
        """Whom the candidate is compared with, defaults applied."""
        return self.against or ("parent" if metric(self.metric, None).comparative else None)

    @property
    def bounds(self) -> list[float]:
        """The bounds that are set."""
        return [bound for bound in (self.at_least, self.at_most) if bound is not None]

    @property
    def demand(self) -> str:
        """The bounds in words."""
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", self.at_least), ("<=", self.at_most)) if bound is not None]
        return " and ".join(bounds) + (f" against {self.comparator}" if self.comparator else "")


@dataclass(frozen=True)
class Judgement:
    """A gate, what was found, and what follows."""

    gate: Gate
    estimate: Estimate
    verdict: Verdict
    smallest_effect: float
    """distance from the bound that this sample could have seen, in the metric's unit"""
    items_needed: int | None
    """about how many items would settle a review; None where nothing is open or no number would"""

    @property
    def sentence(self) -> str:
        """All of it in one sentence, with the numbers."""
        gate, found = self.gate, self.estimate
        value, low, high = (shown(number, gate.bounds) for number in (found.value, found.low, found.high))
        count = f"n={found.items}" + (f" in {found.clusters} conversations" if found.clusters < found.items else "")
        text = (
            f"{gate.metric}: need {gate.demand}, got {value} [{low}, {high}] at {percent(found.level)} on {count}: {self.verdict}"
        )
        if self.verdict == "review":
            settle = f"about {self.items_needed} items would settle it" if self.items_needed else "it lies on the bound"
            text += f" (the smallest effect this sample could have seen is {self.smallest_effect:.3g}; {settle})"
        return text

    def row(self) -> dict[str, Json]:
        """Everything as plain JSON; numbers to six digits, so that machines that round differently agree."""
        about = metric(self.gate.metric, self.gate.against)
        return {
            **described(self.gate.metric, self.gate.comparator, self.estimate),
            "at_least": self.gate.at_least,
            "at_most": self.gate.at_most,
            "demand": self.gate.demand,
            "note": self.gate.note,
            "unit": about.unit,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "smallest_effect": rounded(self.smallest_effect),
            "items_needed": self.items_needed,
        }


def judge(gates: Sequence[Gate], scores: Scores, *, seed: int, resamples: int = RESAMPLES) -> list[Judgement]:
    """Judge every gate, at levels corrected for their number.  Raises DataError, naming the gate, where scores are missing."""
    return [_judged(gate, level, scores, seed, resamples) for gate, level in zip(gates, corrected(gates), strict=True)]


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """Any fail is a fail, else any review a review; without gates nothing was asked, and a person must look."""
    verdicts = {judgement.verdict for judgement in judgements}
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "review"


def corrected(gates: Sequence[Gate]) -> list[float]:
    """Interval levels that hold for all gates at once (Bonferroni).

    Holm's step-down belongs here: it orders the gates by their p-values and would replace these levels one by one.

    >>> [round(level, 4) for level in corrected([Gate(metric="finished_rate", at_least=0.9)] * 2)]
    [0.975, 0.975]
    """
    return [1 - (1 - gate.level) / len(gates) for gate in gates]


def measured(scores: Scores, *, seed: int, resamples: int = RESAMPLES, level: float = 0.95) -> list[dict[str, Json]]:
    """Every metric that can be computed, gated or not; a row with `error` says why one could not."""
    rows: list[dict[str, Json]] = []
    for name, against in measurable(scores):
        about = metric(name, against)
        facts: dict[str, Json] = {"unit": about.unit, "better": about.better, "meaning": about.meaning}
        try:
            estimate = about.sample(scores, against).estimate(level, seed=seed, resamples=resamples)
        except DataError as error:  # no gate asked for this one: it may not stop the verdict
            rows.append({"metric": name, "against": against, "error": str(error), **facts})
        else:
            rows.append({**described(name, against, estimate), **facts})
    return rows


def described(name: str, against: Against | None, estimate: Estimate) -> dict[str, Json]:
    """An estimate as plain JSON."""
    return {
        "metric": name,
        "against": against,
        "estimate": rounded(estimate.value),
        "low": rounded(estimate.low),
        "high": rounded(estimate.high),
        "level": rounded(estimate.level),
        "standard_error": rounded(estimate.error),
        "items": estimate.items,
        "clusters": estimate.clusters,
    }


def shown(number: float, bounds: Sequence[float] = ()) -> str:
    """`number` to three decimals, or as many more as it takes not to look equal to a bound that it differs from.

    >>> shown(0.49997, [0.5]), shown(0.25, [0.5])
    ('0.49997', '0.250')
    """
    digits = next((d for d in range(3, 12) if all((number == b) == (round(number, d) == b) for b in bounds)), 12)
    return f"{number:.{digits}f}"


def percent(level: float) -> str:
    """A level for people.

    >>> percent(0.95), percent(1 - 0.05 / 3)
    ('95%', '98.3%')
    """
    return f"{100 * level:.1f}".removesuffix(".0") + "%"


def rounded(number: float) -> float:
    """To six significant digits."""
    return float(f"{number:.{_DIGITS}g}")


def _judged(gate: Gate, level: float, scores: Scores, seed: int, resamples: int) -> Judgement:
    try:
        sample = metric(gate.metric, gate.against).sample(scores, gate.comparator)
        found = sample.estimate(level, seed=seed, resamples=resamples)
    except DataError as error:
        raise DataError(f"gate {gate.metric}: {error}") from error
    sides = [(found.low - gate.at_least, found.high - gate.at_least)] if gate.at_least is not None else []
    if gate.at_most is not None:
        sides.append((gate.at_most - found.high, gate.at_most - found.low))
    verdict: Verdict = "review"
    if all(worst >= 0 for worst, _ in sides):
        verdict = "pass"
    elif any(best < 0 for _, best in sides):
        verdict = "fail"
    needed = None
    if verdict == "review":
        open_bounds = [abs(found.value - bound) for bound in gate.bounds if found.low < bound < found.high]
        needed = found.items_needed(min(open_bounds, default=0.0))
    return Judgement(gate, found, verdict, found.smallest_effect(), needed)
