# pyright: basic
"""Samples: what is estimated, from which columns.  No files and no models here; the distributions are those of evals.intervals.

A quantity is a function of column totals, a mean being sum(w v) / sum(w).  Rows of one cluster (a conversation) are added up
first and then weighted together, and all columns of a draw share their weights: that is what makes a comparison paired.  What
cannot be estimated raises DataError, it never becomes a number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from evals.intervals import UNKNOWN, Drawn, Estimate, Exponential, Floats, Spread, counted, drawn
from tasks.core.errors import DataError

Texts: TypeAlias = npt.NDArray[Any]
Range: TypeAlias = tuple[float, float]

RESAMPLES = 10_000


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
    positive: bool = False
    """it is above 0 and means as much doubled as halved: without support, it is judged by its logarithm"""

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
        """The quantity with its interval of coverage `level`; see `spread`."""
        return self.spread(seed=seed, resamples=resamples, batch=batch).estimate(level)

    def spread(self, *, seed: int, resamples: int = RESAMPLES, batch: int | None = None) -> Spread:
        """The quantity and what it may be instead; the calibration of each way is measured in docs/calibration.md.

        - Means of shares, wins and their differences, an item a cluster: exact (`intervals.Counted`), nothing is drawn.
        - Other quantities of known support: random weights, and an unseen cluster at the pessimistic end (`intervals.drawn`).
        - Without support: Student's t on jackknife values, or such weights with an end guessed from the skew if that is wider;
          of the logarithm, if `positive`.

        Equal items, seed and resamples give equal numbers, whatever the order of the rows or `batch`.  Raises DataError for fewer
        than two clusters, and where the quantity does not exist without some cluster (a total of zero below the line).
        """
        totals = self._cluster_totals()
        n = len(totals[0])
        if n < 2:
            raise DataError(f"{len(self.clusters)} items in 1 conversation: an interval needs at least 2 conversations")
        sums = [column.sum() for column in totals]
        logs = self.positive and not self.support

        def quantity(*drawn: Any) -> Any:  # noqa: ANN401  numbers or arrays of one shape
            return np.log(self.of_totals(*drawn)) if logs else self.of_totals(*drawn)

        with np.errstate(all="ignore"):
            value = float(quantity(*sums))
            without = quantity(*(total - column for total, column in zip(sums, totals, strict=True)))
            alone = quantity(*totals)
            parts = n * value - (n - 1) * np.asarray(without, dtype=np.float64)
        if not np.isfinite(parts).all():
            raise DataError(
                f"the quantity does not exist for some resamples of these {n} conversations; are most of the values 0?"
            )
        varied = np.ptp(parts) > 1e-9 * max(1.0, abs(value))
        error = float(np.std(parts, ddof=1)) / n**0.5 if varied else 0.0
        sides = None
        if self.support and np.allclose(parts, alone, rtol=0, atol=1e-9):  # then it is the mean of these
            sides = counted(np.round(alone, 9), self.support)
        if not sides and not self.support and not varied:
            sides = UNKNOWN, UNKNOWN
        if not sides:
            ends = self.support or _guessed_ends(value, parts)
            lows, highs = drawn(totals, quantity, ends, seed=seed, resamples=resamples, batch=batch)
            student = [None if self.support else (sign * value, error, n - 1) for sign in (1, -1)]
            worst = self.support or (-np.inf, np.inf)
            sides = Drawn(lows, worst[0], student[0]), Drawn(-highs[::-1], -worst[1], student[1])
        if logs:  # the error of exp(x) is exp(x) times that of x, to first order
            value = float(self.of_totals(*sums))
            return Spread(value, value * error, len(self.clusters), n, Exponential(sides[0], 1), Exponential(sides[1], -1))
        return Spread(value, error, len(self.clusters), n, *sides)

    def _cluster_totals(self) -> tuple[Floats, ...]:
        """Columns added up by cluster, clusters in order of their name, so that the order of the rows does not matter."""
        names, where = np.unique(self.clusters, return_inverse=True)
        return tuple(_totals(column, where, len(names)) for column in self.columns)


def mean(values: Floats, clusters: Texts, *, support: Range | None = None) -> Sample:
    """Mean over items.

    >>> mean(np.array([1.0, 0.0, 1.0, 1.0]), np.array(list("abcd")), support=(0, 1)).estimate(0.95, seed=0).value
    0.75
    """
    if support and len(values) and not (values.min() >= support[0] - 1e-9 and values.max() <= support[1] + 1e-9):
        _refuse_nan(values)
        raise DataError(f"values from {values.min():g} to {values.max():g} where {support[0]:g} to {support[1]:g} was expected")
    return Sample((values, np.ones(len(values))), clusters, lambda total, count: total / count, support)


def ratio(above: Floats, below: Floats, clusters: Texts, *, support: Range | None = None, positive: bool = False) -> Sample:
    """Total over total, both measured on the same items."""
    return Sample((above, below), clusters, lambda a, b: a / b, support, positive)


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
    return Sample((nll * tokens, tokens), clusters, lambda nats, count: np.exp(nats / count), positive=True)


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


def _guessed_ends(value: float, parts: Floats) -> Range:
    """Where an unseen cluster may lie, if nothing is known: beyond the longer tail, as far as docs/calibration.md found right.

    parts: jackknife values (n,), which scatter around the quantity as items do around their mean.
    """
    skew = (parts.max() - value) - (value - parts.min())
    far = value + (1 + 60 / len(parts)) * skew
    return min(value, far), max(value, far)
