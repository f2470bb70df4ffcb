# pyright: basic
"""Whether a scorer of pairs means what it says, and whether it looks at length.  Pure statistics: no files and no models.

A scorer says of a pair: P(chosen is better) = sigmoid(margin), margin = score of chosen less score of rejected (Bradley-Terry).
Its confidence is the probability of whichever answer it prefers, between 0.5 and 1; it is right where that is the chosen one.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from evals.statistics import Estimate, Floats, Sample, Texts, mean, shares
from tasks.core.errors import DataError

MOST_BINS = 10
PAIRS_PER_BIN = 20
"""fewer pairs get fewer bins: the error of a bin of k right-or-wrong pairs is about 0.5 / sqrt(k) by chance alone"""


class Bin(NamedTuple):
    """Pairs of like margin."""

    pairs: int
    confidence: float
    """mean of what the scorer says"""
    right: float
    """share of them that it ranks rightly; a tie counts half"""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Pairs sorted into bins of like margin, as many in each as ties allow."""

    confidence: Floats
    """(n,): what the scorer, rescaled, says of the answer it prefers"""
    right: Floats
    """(n,): 1, 0.5 for a tie, or 0"""
    place: np.ndarray
    """(n,): which bin"""
    clusters: Texts

    @classmethod
    def of(cls, margins: Floats, clusters: Texts, scale: float = 1.0) -> "Reliability":
        """Of pairs with these margins, in nats, times `scale`.  Raises DataError where there are none, or NaN."""
        from scipy.special import expit

        if bad := int(np.count_nonzero(~np.isfinite(margins))) or not len(margins):
            raise DataError(
                f"{bad if len(margins) else 'all'} of {len(margins)} margins are no numbers, so nothing is calibrated"
            )
        size = np.abs(margins)
        bins = max(1, min(MOST_BINS, len(margins) // PAIRS_PER_BIN))
        edges = np.unique(np.quantile(size, np.arange(1, bins) / bins, method="lower"))
        return cls(expit(scale * size), shares(margins), np.searchsorted(edges, size, side="left"), clusters)

    def bins(self) -> list[Bin]:
        """From the smallest margins to the largest."""
        found = [self.place == place for place in np.unique(self.place)]
        return [Bin(int(in_it.sum()), float(self.confidence[in_it].mean()), float(self.right[in_it].mean())) for in_it in found]

    def error(self) -> Sample:
        """Expected calibration error (arXiv:1706.04599, eq. 5): |confidence - share right| of each bin, weighted by its pairs.

        Chance alone makes it positive, by about 0.4 / sqrt(pairs per bin): it is never too kind to the scorer.
        """
        apart = self.confidence - self.right
        columns = [np.where(self.place == place, apart, 0.0) for place in np.unique(self.place)]

        def of_totals(count: Any, *totals: Any) -> Any:  # noqa: ANN401  numbers or arrays of one shape
            return sum(np.abs(total) for total in totals) / count

        return Sample((np.ones(len(apart)), *columns), self.clusters, of_totals, (0.0, 1.0))

    def overconfidence(self) -> Sample:
        """Mean confidence less the share it ranks rightly; negative where it says less than it knows."""
        return mean(self.confidence - self.right, self.clusters, support=(-1.0, 1.0))


def brier(margins: Floats, clusters: Texts) -> Sample:
    """Mean of (1 - P(chosen better))^2: 0 is perfect, 0.25 is what saying nothing gets."""
    from scipy.special import expit

    return mean(expit(-margins) ** 2, clusters, support=(0.0, 1.0))


def slope(margins: Floats, clusters: Texts, level: float) -> Estimate | None:
    """By what to multiply the scores so that they fit best: the s of highest likelihood under P = sigmoid(s margin).

    1 is calibrated, below 1 overconfident, 0 knows nothing, negative prefers the worse answer; 1 / s is the temperature.  None
    where no s is best: all margins 0, or all pairs on one side.  Interval: t, its variance robust to clusters (sandwich).
    """
    from scipy.optimize import brentq
    from scipy.special import expit
    from scipy.stats import t

    if not ((margins > 0).any() and (margins < 0).any()):
        return None
    scale = float(np.sqrt(np.mean(margins**2)))
    unit = margins / scale

    def gradient(s: float) -> float:
        return float(np.sum(unit * expit(-s * unit)))

    reach = 1.0
    while gradient(reach) > 0 or gradient(-reach) < 0:
        reach *= 2
    best = cast(float, brentq(gradient, -reach, reach, xtol=1e-12))
    names, where = np.unique(clusters, return_inverse=True)
    n = len(names)
    if n < 2:
        raise DataError(f"{len(margins)} items in 1 conversation: an interval needs at least 2 conversations")
    pulls = np.bincount(where, weights=unit * expit(-best * unit), minlength=n)
    information = float(np.sum(unit**2 * expit(best * unit) * expit(-best * unit)))
    error = math.sqrt(n / (n - 1) * float(np.sum(pulls**2))) / information
    reach = float(t.ppf((1 + level) / 2, n - 1)) * error
    return Estimate(best / scale, (best - reach) / scale, (best + reach) / scale, level, error / scale, len(margins), n)


def rank_correlation(one: Floats, other: Floats, clusters: Texts, level: float) -> Estimate | None:
    """Spearman's correlation; None where either does not vary.

    Interval: Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright, Psychometrika 65(1), 2000.  n counts
    clusters, which is cautious: as if all items of a conversation said the same.  Raises DataError for fewer than four of them.
    """
    from scipy.stats import norm, spearmanr

    bad = int(np.count_nonzero(~(np.isfinite(one) & np.isfinite(other))))
    if bad:
        raise DataError(f"{bad} of {len(one)} values are NaN or infinite; look at the scores of the model that gave them")
    n = len(np.unique(clusters))
    if n < 4:
        raise DataError(f"{len(one)} items in {n} conversations: a correlation needs at least 4 conversations")
    if not (np.ptp(one) > 0 and np.ptp(other) > 0):
        return None
    found = round(float(cast(Any, spearmanr(one, other)).statistic), 12)  # 1 may come out as its nearest neighbour
    error = math.sqrt((1 + found**2 / 2) / (n - 3))
    if abs(found) == 1:
        return Estimate(found, found, found, level, 0.0, len(one), n)
    z, reach = math.atanh(found), float(norm.ppf((1 + level) / 2)) * error
    return Estimate(found, math.tanh(z - reach), math.tanh(z + reach), level, error * (1 - found**2), len(one), n)
