# pyright: basic
"""Estimates with intervals, by the bootstrap; scipy does the resampling.  No files and no models here.

A quantity is a function of column totals, a mean being sum(w v) / sum(w).  Rows of one cluster (a conversation) are added up
first and then drawn together, and all columns of a draw share their rows: that is what makes a comparison paired.  What cannot
be estimated raises DataError, it never becomes a number.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tasks.core.errors import DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Texts: TypeAlias = npt.NDArray[Any]
Range: TypeAlias = tuple[float, float]

POWER = 0.8
"""how surely the smallest effect of `Estimate.smallest_effect` would have been seen"""
RESAMPLES = 10_000
_BATCH = 2_000_000
"""drawn indices held at once; changes memory and never the result"""


class Estimate(NamedTuple):
    """A value with its two-sided interval."""

    value: float
    low: float
    high: float
    level: float
    """the interval's coverage"""
    error: float
    """standard error"""
    items: int
    clusters: int
    """groups of items that were drawn together"""

    def smallest_effect(self) -> float:
        """Distance from a bound that a true value needs for the interval to clear that bound in 80 % of such samples.

        (t_level + t_power) standard errors, as in Bloom, "Minimum detectable effects", Evaluation Review 19(5), 1995.
        """
        from scipy.stats import t  # scipy takes a second to import, and a plan names gates long before it judges any

        return float((t.ppf((1 + self.level) / 2, self.clusters - 1) + t.ppf(POWER, self.clusters - 1)) * self.error)

    def items_needed(self, distance: float) -> int | None:
        """About how many items would let the interval clear a bound at `distance`; None where no number would."""
        if distance == 0 or self.error == 0:
            return None
        return math.ceil(self.items * (self.smallest_effect() / distance) ** 2)


@dataclass(frozen=True, eq=False)
class Sample:
    """Per-item columns, and the quantity that is a function of their totals."""

    columns: tuple[Floats, ...]
    """K arrays of shape (n,)"""
    clusters: Texts
    """(n,): what each item is drawn together with"""
    of_totals: Callable[..., Any]
    """K totals of any one shape -> values of that shape"""
    support: Range | None = None
    """what the quantity of a single item can be at least and at most, if that is known"""

    def __post_init__(self) -> None:
        """Refuse what no estimate can come from."""
        sizes = {len(column) for column in (*self.columns, self.clusters)}
        if len(sizes) != 1:
            raise DataError(
                f"unpaired columns of {' and '.join(map(str, sorted(sizes)))} items; were all measured on the same items?"
            )
        if sizes == {0}:
            raise DataError("no items to estimate from; is the held-out part empty?")
        _refuse_nan(*self.columns)

    def estimate(self, level: float, *, seed: int, resamples: int = RESAMPLES, batch: int | None = None) -> Estimate:
        """The quantity with its interval of coverage `level`.

        BCa bootstrap (Efron 1987) at a level widened for small samples (Hesterberg, arXiv:1411.5279, section 5.3).  Equal items,
        seed and resamples give equal numbers, whatever the order of the rows or `batch`.  Raises DataError for fewer than two
        clusters, and where the quantity does not exist for some resample (a total of zero below the line).
        """
        from scipy.stats import DegenerateDataWarning, bootstrap

        totals = self._cluster_totals()
        n = len(totals[0])
        if n < 2:
            raise DataError(f"{len(self.clusters)} items in 1 conversation: an interval needs at least 2 conversations")
        with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning), np.errstate(all="ignore"):
            value = float(self.of_totals(*(column.sum() for column in totals)))
            result = bootstrap(
                totals,
                lambda *drawn, axis: self.of_totals(*(column.sum(axis=axis) for column in drawn)),
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                batch=batch or max(1, 2 * _BATCH // (n * len(totals))),
                confidence_level=_widened(level, n),
                method="BCa",
                rng=np.random.default_rng(seed),
            )
        drawn = result.bootstrap_distribution
        if not np.isfinite(value) or not np.isfinite(drawn).all():
            raise DataError(
                f"the quantity does not exist for some resamples of these {n} conversations; are most of the values 0?"
            )
        if np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):
            return self._unvaried(value, level, n)
        low, high = map(float, result.confidence_interval)
        if not (math.isfinite(low) and math.isfinite(high)):  # the bias correction can fail where hardly anything varies
            tail = (1 - _widened(level, n)) / 2
            low, high = map(float, np.quantile(drawn, (tail, 1 - tail)))
        error = float(result.standard_error) * math.sqrt(n / (n - 1))  # resampling divides by n
        return Estimate(value, low, high, level, error, len(self.clusters), n)

    def _cluster_totals(self) -> tuple[Floats, ...]:
        """Columns added up by cluster, clusters in order of their name, so that the order of the rows does not matter."""
        names, where = np.unique(self.clusters, return_inverse=True)
        return tuple(_totals(column, where, len(names)) for column in self.columns)

    def _unvaried(self, value: float, level: float, n: int) -> Estimate:
        """All clusters agree, so resampling knows no doubt.

        Where an item's range is known, the exact binomial bound (Clopper-Pearson, 0 of n) says how many unseen clusters may still
        differ, and the interval reaches that far towards both ends of the range.
        """
        from scipy.stats import binomtest, t

        low = high = value
        if self.support:
            unseen = binomtest(0, n).proportion_ci(level, method="exact").high
            low = value - unseen * (value - self.support[0])
            high = value + unseen * (self.support[1] - value)
        error = (high - low) / 2 / float(t.ppf((1 + level) / 2, n - 1))
        return Estimate(value, low, high, level, error, len(self.clusters), n)


def mean(values: Floats, clusters: Texts, *, support: Range | None = None) -> Sample:
    """Mean over items.

    >>> mean(np.array([1.0, 0.0, 1.0, 1.0]), np.array(list("abcd")), support=(0, 1)).estimate(0.95, seed=0).value
    0.75
    """
    return Sample((values, np.ones(len(values))), clusters, lambda total, count: total / count, support)


def ratio(above: Floats, below: Floats, clusters: Texts, *, support: Range | None = None) -> Sample:
    """Total over total, both measured on the same items."""
    return Sample((above, below), clusters, lambda a, b: a / b, support)


def macro_f1(predicted: Floats, true: Floats, clusters: Texts) -> Sample:
    """Mean over labels of 2 right / (predicted + true); labels are numbers.  A resample leaves out what it has nothing of.

    >>> one, two = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    >>> round(macro_f1(one, two, np.array(list("abcd"))).estimate(0.95, seed=0, resamples=1000).value, 6)
    0.733333
    """
    _refuse_nan(predicted, true)
    right = [((predicted == label) & (true == label)).astype(np.float64) for label in np.union1d(predicted, true)]
    both = [(predicted == label).astype(np.float64) + (true == label) for label in np.union1d(predicted, true)]

    def of_totals(*totals: Any) -> Any:  # noqa: ANN401  numbers or arrays of one shape
        above, below = (np.stack(part) for part in (totals[: len(right)], totals[len(right) :]))
        there = below > 0
        return (2 * above / np.where(there, below, 1)).sum(axis=0) / there.sum(axis=0)

    return Sample((*right, *both), clusters, of_totals, (0.0, 1.0))


def contrast(one: Sample, other: Sample) -> Sample:
    """What is estimated from `one` less what is from `other`, on the same items drawn together."""
    if not np.array_equal(one.clusters, other.clusters):
        raise DataError("unpaired: the two were not measured on the same items")
    first = len(one.columns)
    support = None
    if one.support and other.support:
        support = (one.support[0] - other.support[1], one.support[1] - other.support[0])
    return Sample(
        (*one.columns, *other.columns),
        one.clusters,
        lambda *totals: one.of_totals(*totals[:first]) - other.of_totals(*totals[first:]),
        support,
    )


def perplexity(nll: Floats, tokens: Floats, clusters: Texts) -> Sample:
    """exp of the token-weighted mean negative log-likelihood.  nll: mean per token of each item, nats; (n,)."""
    if bad := int(np.count_nonzero(~(tokens > 0))):
        raise DataError(f"{bad} of {len(tokens)} items have no tokens, so they have no likelihood per token")
    return Sample((nll * tokens, tokens), clusters, lambda nats, count: np.exp(nats / count))


def perplexity_ratio(nll: Floats, reference: Floats, tokens: Floats, clusters: Texts) -> Sample:
    """Perplexity over the reference's perplexity, on the same tokens.  Both nll: mean per token of each item, nats; (n,)."""
    return perplexity(difference(nll, reference), tokens, clusters)


def difference(values: Floats, reference: Floats) -> Floats:
    """Item by item; DataError where the two do not pair up."""
    if len(values) != len(reference):
        raise DataError(f"unpaired: {len(values)} items against {len(reference)}; were both measured on the same items?")
    return values - reference


def shares(differences: Sequence[float] | Floats) -> Floats:
    """1 for what is above zero, 0.5 for a tie, 0 below; what is not a number stays so.

    >>> shares([2.0, 0.0, -1.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    return (np.sign(np.asarray(differences, dtype=np.float64)) + 1) / 2


def _refuse_nan(*columns: Floats) -> None:
    for column in columns:
        if bad := int(np.count_nonzero(~np.isfinite(column))):
            raise DataError(f"{bad} of {len(column)} values are NaN or infinite; look at the scores of the model that gave them")


def _totals(column: Floats, where: npt.NDArray[np.intp], count: int) -> Floats:
    order = np.lexsort((column, where))  # floating-point sums depend on their order: fix it
    return np.bincount(where[order], weights=column[order], minlength=count).astype(np.float64)


def _widened(level: float, n: int) -> float:
    """The bootstrap level whose normal interval is as wide as the t interval of `level` on n clusters."""
    from scipy.stats import norm, t

    return float(1 - 2 * norm.sf(math.sqrt(n / (n - 1)) * t.ppf((1 + level) / 2, n - 1)))
