# pyright: basic
"""Continual learning measured: losses on every task after each task, and what that says of forgetting and transfer.

L[i][j] is the mean negative log-likelihood per answer token, nats, on the held-out part of task j after i tasks were learned; row
0 is the model before any of them.  Both count from 1 in the formulas, T is the number of tasks.  The transfers are those of GEM
(arXiv:1706.08840, section 2) adapted to losses: a loss is better when lower, so every difference is turned round, and the model
before all tasks stands where the paper has a randomly initialised one.  Forgetting is that of arXiv:1801.10112, with the lowest
loss so far in the place of the highest accuracy.
"""

import math
from collections.abc import Mapping, Sequence

from evals.intervals import finite
from evals.scores import Series
from evals.statistics import Estimate, Sample, difference, perplexity_ratio, ratio
from tasks.core.errors import DataError
from tasks.core.spec import Json

Losses = Mapping[tuple[int, int], Series]
"""(i, j), both from 0, i over rows and j over tasks -> losses per item, weights are tokens"""
MEANINGS = {
    "average_forgetting": "mean over the tasks before the last of L[T][j] - min(L[1][j] ... L[T-1][j]): nats per token that were "
    "known at some time and are not any more",
    "backward_transfer": "mean over the tasks before the last of L[j][j] - L[T][j]: below 0, later tasks made earlier ones worse",
    "forward_transfer": "mean over the tasks after the first of L[0][j] - L[j-1][j]: above 0, earlier tasks helped later ones "
    "before they were learned",
    "final_loss": "mean over all tasks of L[T][j]",
}


def cell(losses: Losses, row: int, column: int, *, level: float, seed: int) -> dict[str, Json]:
    """The mean loss with its interval, and the perplexity over that just after the task was learned, on the same items."""
    series = losses[row, column]
    found = ratio(series.values * series.weights, series.weights, series.clusters).estimate(level, seed=seed)
    told: dict[str, Json] = {**_numbers(found), "tokens": int(series.weights.sum()), "ratio": None}
    learned = column + 1
    if row > learned:
        told["ratio"] = _numbers(_against(losses, row, learned, column).estimate(level, seed=seed))
    return told


def summary(losses: Losses, tasks: int, *, level: float, seed: int) -> dict[str, Json]:
    """The four averages of MEANINGS, each with an interval; None where two tasks would be needed and there is one."""

    def mean_of(pairs: Sequence[tuple[int, int, int]]) -> Json:
        """Of L[a][j] - L[b][j] over (a, b, j)."""
        return _combined([_difference(losses, *pair).estimate(level, seed=seed) for pair in pairs], level)

    last, before, after = tasks, range(tasks - 1), range(1, tasks)
    best = {j: min(range(1, last), key=lambda i: (_mean(losses[i, j]), -i)) for j in before} if tasks > 1 else {}
    final = [
        ratio(s.values * s.weights, s.weights, s.clusters).estimate(level, seed=seed)
        for s in (losses[last, j] for j in range(tasks))
    ]
    return {
        "average_forgetting": mean_of([(last, best[j], j) for j in before]),
        "backward_transfer": mean_of([(j + 1, last, j) for j in before]),
        "forward_transfer": mean_of([(0, j, j) for j in after]),
        "final_loss": _combined(final, level),
    }


def _combined(estimates: Sequence[Estimate], level: float) -> Json:
    """Mean of estimates on different items, so their errors add up as those of independent samples do.

    The interval is Student's, with the degrees of freedom of the smallest sample: wide rather than narrow.
    """
    from scipy.stats import t

    if not estimates:
        return None
    value = math.fsum(e.value for e in estimates) / len(estimates)
    error = math.sqrt(math.fsum(e.error**2 for e in estimates)) / len(estimates)
    half = float(t.ppf((1 + level) / 2, min(e.clusters for e in estimates) - 1)) * error
    return {"value": value, "low": value - half, "high": value + half}


def _difference(losses: Losses, one: int, two: int, column: int) -> Sample:
    a, b = _paired(losses, one, two, column)
    return ratio(difference(a.values, b.values) * a.weights, a.weights, a.clusters)


def _against(losses: Losses, row: int, other: int, column: int) -> Sample:
    a, b = _paired(losses, row, other, column)
    return perplexity_ratio(a.values, b.values, a.weights, a.clusters)


def _paired(losses: Losses, one: int, two: int, column: int) -> tuple[Series, Series]:
    a, b = losses[one, column], losses[two, column]
    if a.items.tolist() != b.items.tolist() or a.weights.tolist() != b.weights.tolist():
        raise DataError(f"task {column + 1}: rows {one} and {two} were not measured on the same tokens; measure both afresh?")
    return a, b


def _mean(series: Series) -> float:
    return float((series.values * series.weights).sum() / series.weights.sum())


def _numbers(found: Estimate) -> dict[str, Json]:
    return {"value": found.value, "low": finite(found.low), "high": finite(found.high), "items": found.items}
