"""Calibration: worked-out numbers, other people's implementations, and intervals that cover what they claim to."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import spearmanr

from evals.calibration import Reliability, brier, rank_correlation, slope
from tasks.core.errors import DataError


def names(n: int) -> np.ndarray:
    return np.array([f"c{i:05d}" for i in range(n)])


def pairs(draw: np.random.Generator, n: int, said: float = 1.0) -> np.ndarray:
    """Margins of a Bradley-Terry scorer whose scores are `said` times too far apart."""
    margins = draw.normal(size=n) * 1.5
    return said * np.where(draw.random(n) < expit(margins), margins, -margins)


def test_bins_and_errors_are_the_worked_out_ones():
    two, one = math.log(3), math.log(1.5)  # sigmoid: 0.75 and 0.6
    margins = np.array([two] * 15 + [-two] * 15 + [one] * 24 + [-one] * 6)
    found = Reliability.of(margins, names(60))
    assert [(b.pairs, round(b.confidence, 9), b.right) for b in found.bins()] == [(30, 0.6, 0.8), (30, 0.75, 0.5)]
    assert found.error().estimate(0.95, seed=0, resamples=1000).value == pytest.approx((0.2 + 0.25) / 2)
    assert found.overconfidence().estimate(0.95, seed=0, resamples=1000).value == pytest.approx((0.6 - 0.8 + 0.75 - 0.5) / 2)
    wanted = (15 * 0.25**2 + 15 * 0.75**2 + 24 * 0.4**2 + 6 * 0.6**2) / 60
    assert brier(margins, names(60)).estimate(0.95, seed=0, resamples=1000).value == pytest.approx(wanted)


def test_a_tie_is_half_right_and_half_sure():
    (only,) = Reliability.of(np.zeros(7), names(7)).bins()
    assert only == (7, 0.5, 0.5)


def test_few_pairs_get_few_bins_and_equal_margins_stay_together():
    draw = np.random.default_rng(0)
    assert [len(Reliability.of(draw.normal(size=n), names(n)).bins()) for n in (5, 39, 40, 100, 5000)] == [1, 1, 2, 5, 10]
    assert len(Reliability.of(np.sign(draw.normal(size=500)), names(500)).bins()) == 1


def test_the_error_is_that_of_a_plain_loop():
    margins = pairs(np.random.default_rng(1), 333, 2.0)
    found = Reliability.of(margins, names(333))
    order = np.argsort(np.abs(margins))
    edges = sorted({np.sort(np.abs(margins))[math.floor(332 * i / 10)] for i in range(1, 10)})
    bins: dict[int, list[int]] = {}
    for i in order:
        bins.setdefault(sum(abs(margins[i]) > edge for edge in edges), []).append(i)
    total = 0.0
    for members in bins.values():
        sure = sum(1 / (1 + math.exp(-abs(margins[i]))) for i in members) / len(members)
        right = sum(margins[i] > 0 for i in members) / len(members)
        total += len(members) / 333 * abs(sure - right)
    assert found.error().estimate(0.95, seed=0, resamples=1000).value == pytest.approx(total)


def test_the_slope_is_that_of_highest_likelihood():
    margins = pairs(np.random.default_rng(2), 400, 3.0)
    found = slope(margins, names(400), 0.95)
    best = minimize_scalar(lambda s: np.sum(np.log1p(np.exp(-s * margins))), bounds=(-5, 5), options={"xatol": 1e-10})
    assert found.value == pytest.approx(best.x, abs=1e-6)
    assert found.low < 1 / 3 < found.high < 1
    assert slope(1000 * margins, names(400), 0.95).value == pytest.approx(found.value / 1000)
    assert slope(-margins, names(400), 0.95).value == pytest.approx(-found.value)


def test_there_is_no_best_slope_where_all_pairs_are_on_one_side():
    assert slope(np.array([1.0, 2.0, 0.0]), names(3), 0.95) is None
    assert slope(np.zeros(3), names(3), 0.95) is None
    assert slope(-np.ones(3), names(3), 0.95) is None


def test_the_correlation_is_scipys_and_its_interval_bonetts_and_wrights():
    draw = np.random.default_rng(3)
    one = draw.normal(size=50)
    other = one + draw.normal(size=50)
    found = rank_correlation(one, other, names(50), 0.95)
    r = spearmanr(one, other).statistic
    half = 1.959963985 * math.sqrt((1 + r * r / 2) / 47)
    assert (found.value, found.low, found.high) == pytest.approx(
        (r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
    )
    assert rank_correlation(one, np.exp(one), names(50), 0.95)[:3] == (1.0, 1.0, 1.0)
    assert rank_correlation(one, -one, names(50), 0.95)[:3] == (-1.0, -1.0, -1.0)


def test_nothing_is_made_of_what_does_not_vary_or_is_no_number():
    some = np.arange(6.0)
    assert rank_correlation(some, np.ones(6), names(6), 0.95) is None
    with pytest.raises(DataError, match="1 of 6 values are NaN"):
        rank_correlation(np.r_[some[:5], np.nan], some, names(6), 0.95)
    with pytest.raises(DataError, match="at least 4 conversations"):
        rank_correlation(some, some[::-1].copy(), np.array(list("aabbcc")), 0.95)
    with pytest.raises(DataError, match="1 of 2 margins"):
        Reliability.of(np.array([np.nan, 1.0]), names(2))
    with pytest.raises(DataError, match="all of 0 margins"):
        Reliability.of(np.array([]), names(0))
    with pytest.raises(DataError, match="1 conversation"):
        slope(np.array([1.0, -1.0]), np.array(["a", "a"]), 0.95)


def covered(estimates, truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in estimates]))


def test_intervals_of_the_slope_cover_the_planted_scale():
    draw = np.random.default_rng(4)
    assert 0.91 <= covered([slope(pairs(draw, 80, 4.0), names(80), 0.95) for _ in range(400)], 0.25) <= 0.985


def test_intervals_of_the_slope_cover_where_conversations_repeat_themselves():
    draw = np.random.default_rng(5)
    found = [slope(np.repeat(pairs(draw, 80), 3), np.repeat(names(80), 3), 0.95) for _ in range(300)]
    assert 0.91 <= covered(found, 1.0) <= 0.985  # as if rows were independent, it would be about 0.74


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_intervals_of_the_correlation_cover_the_planted_one(rho):
    draw = np.random.default_rng(6)
    truth = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a bivariate normal
    found = []
    for _ in range(500):
        one = draw.normal(size=60)
        found.append(rank_correlation(one, rho * one + math.sqrt(1 - rho**2) * draw.normal(size=60), names(60), 0.95))
    assert 0.925 <= covered(found, truth) <= 0.98


def test_intervals_of_the_correlation_cover_where_conversations_repeat_themselves():
    draw = np.random.default_rng(7)
    found = []
    for _ in range(300):
        one, other = np.repeat(draw.normal(size=40), 3), np.repeat(draw.normal(size=40), 3)
        found.append(rank_correlation(one, other, np.repeat(names(40), 3), 0.95))
    assert covered(found, 0.0) >= 0.925


def test_the_upper_end_of_the_calibration_error_is_hardly_ever_too_kind():
    draw = np.random.default_rng(8)
    truth_draw = Reliability.of(pairs(np.random.default_rng(9), 400_000, 4.0), names(1)[[0] * 400_000])
    truth = sum(b.pairs / 400_000 * abs(b.confidence - b.right) for b in truth_draw.bins())
    found = [Reliability.of(pairs(draw, 150, 4.0), names(150)).error().estimate(0.95, seed=0, resamples=500) for _ in range(120)]
    assert truth > 0.1
    assert np.mean([one.high >= truth for one in found]) >= 0.95
