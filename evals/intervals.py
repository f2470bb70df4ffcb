# pyright: basic
"""How far an estimate may be off: one distribution for each end of an interval, from which ends and p-values both come.

So they cannot disagree: `p_above(bound)` is at most (1 - level) / 2 exactly where the interval of `level` lies above `bound`.
What each distribution is, and how often it is wrong, stands in docs/calibration.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

POWER = 0.8
"""how surely the smallest effect of `Estimate.smallest_effect` would have been seen"""
_BATCH = 2_000_000
"""weights held at once; changes memory and never the result"""
_NODES = 200
"""of the quadrature over the share of ties"""


class Estimate(NamedTuple):
    """A value with its two-sided interval."""

    value: float
    low: float
    """-inf where nothing is known"""
    high: float
    """inf where nothing is known"""
    level: float
    """the interval's coverage"""
    error: float
    """standard error"""
    items: int
    clusters: int
    """groups of items that were drawn together"""

    def smallest_effect(self, end: Literal["low", "high"] | None = None) -> float:
        """Distance from a bound that a true value needs for the interval to clear that bound in 80 % of such samples.

        The reach of the interval towards the bound (`end`; by default its longer one) and t_power standard errors: Bloom,
        "Minimum detectable effects", Evaluation Review 19(5), 1995, but with the interval's own reach for t_level errors.
        """
        from scipy.stats import t  # scipy takes a second to import, and a plan names gates long before it judges any

        reach = {"low": self.value - self.low, "high": self.high - self.value}
        return (reach[end] if end else max(reach.values())) + float(t.ppf(POWER, self.clusters - 1)) * self.error

    def items_needed(self, distance: float, end: Literal["low", "high"] | None = None) -> int | None:
        """About how many items would let the interval clear a bound at `distance`; None where no number would."""
        effect = self.smallest_effect(end)
        if distance == 0 or self.error == 0 or not math.isfinite(effect):
            return None
        return math.ceil(self.items * (effect / distance) ** 2)


def finite(number: float) -> float | None:
    """`number`, or None for one that is infinite or none at all: JSON has no such number.

    >>> finite(0.5), finite(float("-inf")), finite(float("nan"))
    (0.5, None, None)
    """
    return number if math.isfinite(number) else None


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the quantity may be at least, as sorted draws."""

    draws: Floats
    worst: float
    """what it is at least without any draw"""
    student: tuple[float, float, int] | None = None
    """value, standard error and degrees of freedom of a t interval that this may not be narrower than"""

    def p(self, bound: float) -> float:
        """One-sided p-value against a true quantity below `bound`."""
        from scipy.stats import t

        p = (1 + int(np.searchsorted(self.draws, bound, side="left"))) / (1 + len(self.draws))
        if self.student:
            value, error, freedom = self.student
            p = max(p, float(t.sf((value - bound) / error, freedom)))
        return min(p, 1.0)

    def end(self, tail: float) -> float:
        """The highest bound whose p is at most `tail`."""
        from scipy.stats import t

        place = math.floor((1 + len(self.draws)) * tail + 1e-9)
        end = float(self.draws[place - 1]) if place else self.worst
        if self.student:
            value, error, freedom = self.student
            end = min(end, value - float(t.isf(tail, freedom)) * error)
        return end


UNKNOWN = Drawn(np.array([-math.inf]), -math.inf)
"""nothing is ruled out"""


class Counted:
    """What a mean of wins (1), ties (0) and losses (-1) may be at least: the distribution of `Drawn`, without drawing.

    Its weights are Dirichlet(wins, ties, losses + 1), so wins among what is no tie are Beta(wins, losses + 1).  Without ties this
    is Clopper and Pearson's interval (Biometrika 26(4), 1934); p(0) is the exact one-sided p-value of McNemar's test with any.
    """

    def __init__(self, wins: int, ties: int, losses: int) -> None:
        """Count the unseen item as a loss."""
        self._wins, self._ties, self._losses = wins, ties, losses + 1
        self._decided, self._weights = _no_ties(wins + losses + 1, ties)

    def p(self, bound: float) -> float:
        """One-sided p-value against a true mean below `bound`."""
        from scipy.special import betainc, betaincc

        if not self._wins:  # the mean is minus the share of losses
            return float(betaincc(self._losses, self._ties, min(1.0, max(0.0, -bound)))) if self._ties else float(bound > -1)
        share = np.clip((1 + bound / self._decided) / 2, 0, 1)  # wins among the decided that make the mean `bound`
        return float(min(self._weights @ betainc(self._wins, self._losses, share), 1.0))

    def end(self, tail: float) -> float:
        """The highest bound whose p is at most `tail`."""
        from scipy.optimize import brentq

        if not self._wins and not self._ties:
            return -1.0
        end = float(brentq(lambda bound: self.p(bound) - tail, -1.0, 1.0, xtol=1e-13))  # pyright: ignore[reportArgumentType]
        return end if self.p(end) <= tail else max(-1.0, end - 1e-9)


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Gauss and Legendre's nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2


@lru_cache(maxsize=256)
def _no_ties(decided: int, ties: int) -> tuple[Floats, Floats]:
    """Shares of what is no tie, as quantiles of Beta(decided, ties), and how much each weighs."""
    from scipy.special import betaincinv

    if not ties:
        return np.ones(1), np.ones(1)
    nodes, weights = _quadrature()
    return betaincinv(decided, ties, nodes), weights


@dataclass(frozen=True)
class Scaled:
    """`side` of a quantity, as that of start + scale * quantity."""

    side: Drawn | Counted
    start: float
    scale: float

    def p(self, bound: float) -> float:
        """One-sided p-value against a true quantity below `bound`."""
        return self.side.p((bound - self.start) / self.scale)

    def end(self, tail: float) -> float:
        """The highest bound whose p is at most `tail`."""
        return self.start + self.scale * self.side.end(tail)


@dataclass(frozen=True)
class Exponential:
    """`side` of a logarithm, as that of the quantity itself; sign -1: both of minus those."""

    side: Drawn | Counted | Scaled
    sign: Literal[1, -1]

    def p(self, bound: float) -> float:
        """One-sided p-value against a true quantity below `bound`."""
        place = self.sign * bound
        if place <= 0:  # the quantity is above 0
            return 0.0 if self.sign == 1 and self.side is not UNKNOWN else 1.0
        return self.side.p(self.sign * math.log(place))

    def end(self, tail: float) -> float:
        """The highest bound whose p is at most `tail`."""
        return self.sign * math.exp(min(self.sign * self.side.end(tail), 700.0)) if self.side is not UNKNOWN else -math.inf


@dataclass(frozen=True)
class Spread:
    """A value and what it may be instead."""

    value: float
    error: float
    items: int
    clusters: int
    lower: Drawn | Scaled | Exponential
    """of the quantity"""
    upper: Drawn | Scaled | Exponential
    """of minus the quantity"""

    def p_above(self, bound: float) -> float:
        """One-sided p-value against a true quantity below `bound`."""
        return self.lower.p(bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value against a true quantity above `bound`."""
        return self.upper.p(-bound)

    def estimate(self, level: float) -> Estimate:
        """The value with its interval of coverage `level`, half of what is left out at each end."""
        from scipy.stats import t

        tail = (1 - level) / 2
        low, high = self.lower.end(tail), -self.upper.end(tail)
        error = self.error
        if error == 0 and math.isfinite(high - low):  # all agree: the interval alone says what is not known
            error = (high - low) / 2 / float(t.isf(tail, self.clusters - 1))
        return Estimate(self.value, low, high, level, error, self.items, self.clusters)


def counted(values: Floats, support: tuple[float, float]) -> tuple[Scaled, Scaled] | None:
    """Both sides of the mean of values that are the ends or the middle of `support`; None where one is something else."""
    low, high = support
    places = 2 * (values - low) / (high - low) - 1
    wins, ties, losses = (int(np.count_nonzero(places == place)) for place in (1, 0, -1))
    if wins + ties + losses < len(values):
        return None
    middle, half = (low + high) / 2, (high - low) / 2
    return Scaled(Counted(wins, ties, losses), middle, half), Scaled(Counted(losses, ties, wins), -middle, half)


def drawn(
    totals: Sequence[Floats],
    of_totals: Callable[..., Any],
    ends: tuple[float, float],
    *,
    seed: int,
    resamples: int,
    batch: int | None,
) -> tuple[Floats, Floats]:
    """The quantity under random weights of the clusters, and of one unseen cluster at either of `ends`; (resamples,) sorted.

    totals: K columns (n,).  Weights are Dirichlet(1, ..., 1): the Bayesian bootstrap (Rubin, Annals of Statistics 9(1), 1981),
    and with the unseen cluster Gaffke's bound on means of bounded values (see arXiv:1905.06208).
    """
    rng, n = np.random.default_rng(seed), len(totals[0])
    rows = batch or max(1, _BATCH // n)
    lows, highs = np.empty(resamples), np.empty(resamples)
    for start in range(0, resamples, rows):
        weights = rng.standard_exponential((min(rows, resamples - start), n + 1))
        unseen = weights[:, n] / weights.sum(axis=1)
        seen = weights[:, :n] * (n / weights[:, :n].sum(axis=1, keepdims=True))
        # sums and no matrix product: those of a row must not depend on how many rows there are
        found = np.asarray(of_totals(*((seen * column).sum(axis=1) for column in totals)), dtype=np.float64)
        part = slice(start, start + len(found))
        lows[part], highs[part] = (found + unseen * (end - found) for end in ends)
    return np.sort(lows), np.sort(highs)
