"""Several policies against one base and against each other: samples averaged over seeds, medians of timings with an interval.

A contrast between two policies is taken item by item, as everything here is.  What it cannot show is another question than
how good one of them is: two intervals that overlap may hide a difference that is sure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from evals.estimates import METRICS
from evals.scores import Scores
from evals.statistics import Estimate, Floats, Sample, difference, mean, shares
from tasks.core.errors import DataError


@dataclass(frozen=True)
class Quality:
    """A metric that policies are compared by."""

    metric: str
    """of evals.estimates, against the base"""
    title: str
    better: Literal["higher", "lower"]
    neutral: float
    """what a contrast of two equal policies is"""
    unit: str
    """of a contrast"""

    def sample(self, scores: Mapping[str, Path]) -> Sample:
        """The metric.  `scores`: candidate and base -> folder of their scores."""
        return METRICS[self.metric].sample(_read(scores), "base")

    def contrast(self, scores: Mapping[str, Path]) -> Sample:
        """How a policy differs from another.  `scores`: candidate, parent (the other) and base -> folder of their scores."""
        read = _read(scores)
        if self.neutral == 1.0:
            return METRICS[self.metric].sample(read, "parent")
        mine, other = (_gained(read, subject) for subject in ("candidate", "parent"))
        clusters = read.aligned(("candidate", "chosen_logp"))[0].clusters
        return mean(difference(mine, other), clusters, support=(-1.0, 1.0))

    def wins(self, contrast: Estimate) -> bool:
        """Whether the interval says that the first of the two is better."""
        return contrast.high < self.neutral if self.better == "lower" else contrast.low > self.neutral


QUALITIES: dict[str, Quality] = {
    "answers": Quality("answer_perplexity_ratio", "held-out answers", "lower", 1.0, "perplexity over the other's"),
    "preferences": Quality("preference_accuracy", "preferences", "higher", 0.0, "difference in share of pairs"),
    "forgetting": Quality("text_perplexity_ratio", "forgetting", "lower", 1.0, "perplexity over the other's"),
}


def pooled(samples: Sequence[Sample]) -> Sample:
    """One sample of the same items measured under several seeds: the mean over seeds, item by item.

    Its interval is about other items and not about other seeds.
    """
    first = samples[0]
    if any(not np.array_equal(sample.clusters, first.clusters) for sample in samples):
        raise DataError("the seeds of one method were measured on different items; measure them afresh?")
    columns = tuple(np.mean(columns, axis=0) for columns in zip(*(sample.columns for sample in samples), strict=True))
    return replace(first, columns=columns)


class Middle(NamedTuple):
    """A median with its interval."""

    value: float
    low: float
    high: float
    items: int


def median(values: Sequence[float], level: float) -> Middle:
    """The median and the narrowest order-statistic interval around it of at least `level` (David & Nagaraja 2003, section 7.1).

    Free of any distribution, so one slow round moves nothing.  Raises DataError where so few values give no such interval.

    >>> median([3.0, 1.0, 2.0, 5.0, 4.0, 6.0], 0.95)
    Middle(value=3.5, low=1.0, high=6.0, items=6)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    # k: how many values lie outside at each end; P(the median lies outside) = 2 P(Binomial(n, 1/2) < k)
    below = np.cumsum([math.comb(n, k) / 2**n for k in range(n)]) * 2
    outside = int(np.searchsorted(below, 1 - level, side="right"))
    if outside == 0:
        raise DataError(f"{n} values give no {level:.0%} interval of their median; take more rounds")
    return Middle(float(np.median(ordered)), float(ordered[outside - 1]), float(ordered[n - outside]), n)


def _gained(scores: Scores, subject: Literal["candidate", "parent"]) -> Floats:
    """1 for each pair whose chosen answer gained on the rejected one under `subject`, relative to the base."""
    wanted = [(who, raw) for who in (subject, "base") for raw in ("chosen_logp", "rejected_logp")]
    chosen, rejected, base_chosen, base_rejected = (series.values for series in scores.aligned(*wanted))
    return shares(difference(chosen, rejected) - difference(base_chosen, base_rejected))


def _read(scores: Mapping[str, Path]) -> Scores:
    return Scores.read({f"scores_{subject}": folder for subject, folder in scores.items()})
