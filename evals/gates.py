"""Gates: bounds on metrics, judged on the pessimistic end of an interval.

Pass needs the whole interval on the right side of the bound, fail the whole interval on the wrong side; between them a person
decides.  Levels are corrected for the number of gates, step by step (`judge`); the interval shown is the one that decided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import Field, model_validator

from evals.estimates import Against, measurable, metric
from evals.intervals import Estimate, Spread, finite
from evals.scores import CHAMPION, Scores
from evals.statistics import RESAMPLES
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import Json, Spec

Verdict = Literal["pass", "review", "fail"]
_DIGITS = 6


class Gate(Spec):
    """What a release must show: `{metric: reward_win_rate, at_least: 0.5}` or `{metric: text_perplexity_ratio, margin: 0.02}`."""

    metric: str
    """a row of `evals.estimates.METRICS`, or a module in `evals/metrics`"""
    at_least: float | None = None
    """the metric must not be below this"""
    at_most: float | None = None
    """the metric must not be above this"""
    margin: float | None = Field(default=None, ge=0)
    """instead of a bound: worse than the other's by no more than this; 0.02 is 2 % of a ratio, 0.02 of any other unit"""
    against: Against | None = None
    """whom the candidate is compared with: parent (what DPO, or SFT alone, started from; the default of a comparison), base, or
    champion (the release that `release.channel` points to; while there is none, the gate is not judged)"""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """1 less the chance, over all gates of the plan together, that an interval ends on the wrong side of its bound"""
    note: str = ""
    """why it is asked for; printed with the verdict"""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        where = f"gate {self.metric}"  # ValueError is what pydantic collects, with the place in the plan
        try:
            known = metric(self.metric, self.against)
        except SpecError as error:
            raise ValueError(f"gate {error}") from error
        if self.against and not known.comparative:
            raise ValueError(f"{where}: it is measured on the candidate alone; leave out against: {self.against}")
        if self.margin is not None:
            if self.at_least is not None or self.at_most is not None:
                raise ValueError(f"{where}: margin is a bound already; leave out at_least and at_most, or the margin")
            if not known.comparative:
                raise ValueError(f"{where}: a margin is to another model, and it is measured on the candidate alone; set a bound")
            try:
                known.no_worse(self.margin)
            except SpecError as error:
                raise ValueError(f"{where}: {error}") from error
        elif self.at_least is None and self.at_most is None:
            raise ValueError(f"{where}: none of at_least, at_most and margin is set, so it could never say no")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"{where}: at_least {self.at_least:g} is above at_most {self.at_most:g}, so it could never pass")
        return self

    @property
    def comparator(self) -> Against | None:
        """Whom the candidate is compared with, defaults applied."""
        return self.against or ("parent" if metric(self.metric, None).comparative else None)

    @property
    def meets_champion(self) -> bool:
        """Whether it compares the candidate with the release that stands."""
        return self.comparator == CHAMPION

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """At least and at most, from whichever fields say so."""
        if self.margin is None:
            return self.at_least, self.at_most
        return metric(self.metric, self.against).no_worse(self.margin)

    @property
    def bounds(self) -> list[float]:
        """The bounds that are set."""
        return [bound for bound in self.limits if bound is not None]

    @property
    def demand(self) -> str:
        """The bounds in words."""
        bounds = [f"{sign} {bound:g}" for sign, bound in zip((">=", "<="), self.limits, strict=True) if bound is not None]
        text = " and ".join(bounds) + (f" against {self.comparator}" if self.comparator else "")
        if self.margin is None:
            return text
        ratio = metric(self.metric, self.against).neutral == 1
        return f"{text} (no worse by more than {f'{100 * self.margin:g}%' if ratio else f'{self.margin:g}'})"

    def p_value(self, spread: Spread) -> float:
        """Of data as good as these if a bound were just met: two-sided, as the interval is, and of the worse of two bounds.

        It is at most 1 - level exactly where the interval of that level is on the right side of every bound.
        """
        at_least, at_most = self.limits
        sides = [spread.p_above(at_least)] if at_least is not None else []
        sides += [spread.p_below(at_most)] if at_most is not None else []
        return min(1.0, 2 * max(sides))

    def verdict(self, found: Estimate) -> Verdict:
        """What follows from this interval alone."""
        at_least, at_most = self.limits
        sides = [(found.low - at_least, found.high - at_least)] if at_least is not None else []
        if at_most is not None:
            sides.append((at_most - found.high, at_most - found.low))
        if all(worst >= 0 for worst, _ in sides):
            return "pass"
        return "fail" if any(best < 0 for _, best in sides) else "review"


@dataclass(frozen=True)
class Judgement:
    """A gate, what was found, and what follows."""

    gate: Gate
    estimate: Estimate
    verdict: Verdict
    p: float
    """see `Gate.p_value`; not corrected for the number of gates: the estimate's level is"""
    smallest_effect: float
    """distance from the bound that this sample could have seen with 80 % power, in the metric's unit; inf where none is known"""
    items_needed: int | None
    """about how many items would settle a review; None where nothing is open or no number would"""
    left_out: int = 0
    """items that were measured and not compared, see `Scores.left_out`"""

    @property
    def remark(self) -> str:
        """What the reader should know of the items; mostly nothing."""
        if not self.left_out:
            return ""
        return f"{self.left_out} more items left out: cut, or not usable, under one of two tokenizers or chat templates"

    @property
    def sentence(self) -> str:
        """All of it in one sentence, with the numbers."""
        gate, found = self.gate, self.estimate
        value, low, high = (shown(number, gate.bounds) for number in (found.value, found.low, found.high))
        count = f"n={found.items}" + (f" in {found.clusters} conversations" if found.clusters < found.items else "")
        p = probability(self.p)
        interval = f"[{low}, {high}] at {percent(found.level)}, {f'p{p}' if p.startswith('<') else f'p={p}'}"
        count += f" ({self.remark})" if self.left_out else ""
        text = f"{gate.metric}: need {gate.demand}, got {value} {interval} on {count}: {self.verdict}"
        if self.verdict == "review" and not math.isfinite(self.smallest_effect):
            text += " (all conversations say exactly the same, which shows nothing about others)"
        elif self.verdict == "review":
            settle = f"about {self.items_needed} items would settle it" if self.items_needed else "it lies on the bound"
            text += f" (the smallest effect this sample could have seen is {self.smallest_effect:.3g}; {settle})"
        return text

    def row(self) -> dict[str, Json]:
        """Everything as plain JSON; numbers to six digits, so that machines that round differently agree."""
        about = metric(self.gate.metric, self.gate.against)
        return {
            **described(self.gate.metric, self.gate.comparator, self.estimate),
            "at_least": self.gate.limits[0],
            "at_most": self.gate.limits[1],
            "margin": self.gate.margin,
            "p": rounded(self.p),
            "demand": self.gate.demand,
            "note": self.gate.note,
            **_without(self.left_out),
            **({"remark": self.remark} if self.remark else {}),
            "unit": about.unit,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "smallest_effect": known(self.smallest_effect),
            "items_needed": self.items_needed,
        }


def judge(gates: Sequence[Gate], scores: Scores, *, seed: int, resamples: int = RESAMPLES) -> list[Judgement]:
    """Judge every gate, at levels corrected for their number.  Raises DataError, naming the gate, where scores are missing.

    Holm's step-down (Scandinavian Journal of Statistics 6(2), 1979): the gate of the smallest p-value is judged as one of m, and
    only if it passes the next as one of m - 1, and so on; where the first does not pass, all that are left are judged as many as
    they are.  The chance that any gate passes wrongly is then at most 1 - level, however the gates depend on each other, and each
    is shown with the interval it was judged by.  Gates with levels of their own are ordered by p / (1 - level).
    """
    spreads = [_spread(gate, scores, seed, resamples) for gate in gates]
    p_values = [gate.p_value(spread) for gate, spread in zip(gates, spreads, strict=True)]
    order = sorted(range(len(gates)), key=lambda i: (p_values[i] / (1 - gates[i].level), i))
    judged: dict[int, Judgement] = {}
    left, passing = len(gates), True
    for i in order:
        found = spreads[i].estimate(1 - (1 - gates[i].level) / left)
        verdict = gates[i].verdict(found)
        passing = passing and verdict == "pass"
        if verdict == "pass" and not passing:  # as sure as the gate that stopped it, to the last digit
            verdict = "review"
        wanted = metric(gates[i].metric, gates[i].against).wants(gates[i].comparator)
        judged[i] = replace(_judged(gates[i], found, verdict, p_values[i]), left_out=scores.left_out(*wanted))
        left -= passing
    return [judged[i] for i in range(len(gates))]


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """Any fail is a fail, else any review a review; without gates nothing was asked, and a person must look."""
    verdicts = {judgement.verdict for judgement in judgements}
    return "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "review"


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
            facts |= _without(scores.left_out(*about.wants(against)))
            rows.append({**described(name, against, estimate), **facts})
    return rows


def described(name: str, against: Against | None, estimate: Estimate) -> dict[str, Json]:
    """An estimate as plain JSON."""
    return {
        "metric": name,
        "against": against,
        "estimate": rounded(estimate.value),
        "low": known(estimate.low),
        "high": known(estimate.high),
        "level": rounded(estimate.level),
        "standard_error": rounded(estimate.error),
        "items": estimate.items,
        "clusters": estimate.clusters,
    }


def shown(number: float | None, bounds: Sequence[float] = ()) -> str:
    """`number` to three decimals, or as many more as it takes not to look equal to a bound that it differs from; `?` for none.

    >>> shown(0.49997, [0.5]), shown(0.25, [0.5]), shown(None)
    ('0.49997', '0.250', '?')
    """
    if number is None or not math.isfinite(number):
        return "?"
    digits = next((d for d in range(3, 12) if all((number == b) == (round(number, d) == b) for b in bounds)), 12)
    return f"{number:.{digits}f}"


def probability(p: float) -> str:
    """A p-value for people.

    >>> probability(0.0123), probability(0.00002), probability(1.0)
    ('0.012', '<0.001', '1')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}".rstrip("0").removesuffix(".")


def percent(level: float) -> str:
    """A level for people.

    >>> percent(0.95), percent(1 - 0.05 / 3)
    ('95%', '98.3%')
    """
    return f"{100 * level:.1f}".removesuffix(".0") + "%"


def rounded(number: float) -> float:
    """To six significant digits."""
    return float(f"{number:.{_DIGITS}g}")


def known(number: float) -> float | None:
    """`rounded`, or None for what is infinite: JSON has no such number."""
    return finite(rounded(number))


def _without(left_out: int) -> dict[str, Json]:
    return {"left_out": left_out} if left_out else {}


def _spread(gate: Gate, scores: Scores, seed: int, resamples: int) -> Spread:
    try:
        return metric(gate.metric, gate.against).sample(scores, gate.comparator).spread(seed=seed, resamples=resamples)
    except DataError as error:
        raise DataError(f"gate {gate.metric}: {error}") from error


def _judged(gate: Gate, found: Estimate, verdict: Verdict, p: float) -> Judgement:
    """The verdict with what would settle it, towards the bound that is hardest to clear."""
    at_least, at_most = gate.limits
    ways: list[tuple[float, Literal["low", "high"], float]] = []
    if at_least is not None:
        ways.append((abs(found.value - at_least), "low", at_least))
    if at_most is not None:
        ways.append((abs(found.value - at_most), "high", at_most))
    unsettled = [way for way in ways if verdict == "review" and found.low < way[2] < found.high]
    distance, end, _ = min(unsettled or ways)
    needed = found.items_needed(distance, end) if unsettled else None
    return Judgement(gate, found, verdict, p, found.smallest_effect(end), needed)
