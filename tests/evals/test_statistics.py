"""Estimates: worked-out numbers, scipy's own, and no number where there is none; coverage is in the other file."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from evals.intervals import Estimate, drawn
from evals.statistics import difference, mean, perplexity, perplexity_ratio, ratio, shares
from tasks.core.errors import DataError


def names(n: int) -> np.ndarray:
    return np.array([f"c{i:04d}" for i in range(n)])


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_values_are_the_worked_out_ones():
    two = names(2)
    assert mean(array(1, 0, 0.5, 1), names(4)).estimate(0.95, seed=0).value == 0.625
    assert ratio(array(30, 10), array(10, 10), two).estimate(0.95, seed=0).value == 2.0  # of totals, not the mean 2.0 of 3 and 1
    assert ratio(array(30, 10), array(10, 30), two).estimate(0.95, seed=0).value == 1.0  # the mean of ratios would be 1.67
    weighted = perplexity(array(1.0, 2.0), array(30, 10), two).estimate(0.95, seed=0)
    assert weighted.value == pytest.approx(math.exp((30 + 20) / 40))  # by token, not exp(1.5)
    compared = perplexity_ratio(array(1.0, 2.0), array(0.5, 2.0), array(30, 10), two).estimate(0.95, seed=0)
    assert compared.value == pytest.approx(math.exp(50 / 40) / math.exp(35 / 40))


def test_shares_count_a_tie_half_and_keep_what_is_no_number():
    assert shares([3.0, 0.0, -0.1, -0.0]).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert math.isnan(shares([math.nan])[0])


def test_a_share_has_clopper_and_pearsons_interval_and_the_binomial_p():
    for right, n in ((0, 5), (3, 10), (37, 80), (300, 300)):
        spread = mean(np.repeat([1.0, 0.0], [right, n - right]), names(n), support=(0, 1)).spread(seed=0)
        test, found = stats.binomtest(right, n, 0.6, alternative="greater"), spread.estimate(0.9)
        want = stats.binomtest(right, n).proportion_ci(0.9, "exact")
        assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-7)
        assert spread.p_above(0.6) == pytest.approx(test.pvalue)
        assert spread.p_below(0.6) == pytest.approx(stats.binomtest(right, n, 0.6, alternative="less").pvalue)


@pytest.mark.parametrize(("won", "lost", "ties"), [(7, 1, 0), (7, 1, 32), (0, 3, 7), (40, 21, 239), (1, 0, 999)])
def test_paired_right_or_wrong_is_mcnemars_exact_test_whatever_the_ties(won, lost, ties):
    one = np.repeat([1.0, 0.0, 1.0], [won, lost, ties])
    other = np.repeat([0.0, 1.0, 1.0], [won, lost, ties])
    spread = mean(difference(one, other), names(won + lost + ties), support=(-1, 1)).spread(seed=0)
    for p, way in ((spread.p_above(0.0), "greater"), (spread.p_below(0.0), "less")):
        assert p == pytest.approx(stats.binomtest(won, won + lost, 0.5, alternative=way).pvalue)
    wins = mean(shares(difference(one, other)), names(won + lost + ties), support=(0, 1)).spread(seed=0)
    assert wins.p_above(0.5) == pytest.approx(spread.p_above(0.0))  # the same question in other words


def test_what_is_counted_and_what_is_drawn_have_the_same_distribution():
    sample = mean(np.repeat([1.0, 0.5, 0.0], [30, 40, 10]), names(80), support=(0, 1))
    lows, highs = drawn(sample.columns, sample.of_totals, (0.0, 1.0), seed=0, resamples=20_000, batch=None)
    spread = sample.spread(seed=0)
    for tail in (0.01, 0.1, 0.4):
        found = spread.estimate(1 - 2 * tail)
        assert found.low == pytest.approx(float(np.quantile(lows, tail)), abs=0.003)
        assert found.high == pytest.approx(float(np.quantile(highs, 1 - tail)), abs=0.003)


def test_without_a_known_range_it_is_at_least_as_wide_as_students():
    values = stats.norm.isf((np.arange(25) + 0.5) / 25)  # no skew at all
    found = mean(values, names(25)).estimate(0.9, seed=7)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert found.error == pytest.approx(stats.sem(values))
    assert (found.low, found.high) == pytest.approx((want.low, want.high))
    skewed = np.random.default_rng(3).exponential(size=25)
    found, want = mean(skewed, names(25)).estimate(0.9, seed=7), stats.ttest_1samp(skewed, 0).confidence_interval(0.9)
    assert found.low == pytest.approx(want.low)
    assert found.high > want.high + 0.1  # the long tail may hold what was not drawn


@pytest.mark.parametrize("support", [(-1.0, 1.0), (-3.0, 3.0), None])
def test_p_values_and_intervals_never_disagree(support):
    spread = mean(np.random.default_rng(1).integers(-1, 2, 30).astype(float), names(30), support=support).spread(seed=0)
    for level in (0.6, 0.9, 0.99):
        found = spread.estimate(level)
        for bound in (found.low - 1e-6, found.low + 1e-6, found.high - 1e-6, found.high + 1e-6, 0.0):
            assert (spread.p_above(bound) <= (1 - level) / 2 + 1e-12) == (bound <= found.low)
            assert (spread.p_below(bound) <= (1 - level) / 2 + 1e-12) == (bound >= found.high)


def test_a_positive_ratio_is_judged_by_its_logarithm_so_either_way_round_says_the_same():
    one, other = (np.random.default_rng(seed).lognormal(0, 1, 30) for seed in (1, 2))
    spread, turned = (ratio(a, b, names(30), positive=True).spread(seed=0) for a, b in ((one, other), (other, one)))
    found, inverse = spread.estimate(0.9), turned.estimate(0.9)
    assert found.low == pytest.approx(1 / inverse.high, rel=0.02)
    assert spread.p_above(0.8) == pytest.approx(turned.p_below(1.25), abs=0.01)
    assert (spread.p_above(-1.0), spread.p_below(-1.0)) == (0.0, 1.0)
    assert found.error == pytest.approx(found.value * inverse.error / inverse.value, rel=0.02)
    for bound in (found.low * 0.999, found.low * 1.001):
        assert (spread.p_above(bound) <= 0.05) == (bound <= found.low)
    same = ratio(one, one, names(30), positive=True).spread(seed=0)
    assert same.estimate(0.9)[:3] == (1.0, -math.inf, math.inf)


def test_values_outside_the_range_they_were_said_to_have_are_refused():
    with pytest.raises(DataError, match="values from 0 to 2 where 0 to 1 was expected"):
        mean(array(0, 2), names(2), support=(0, 1))


def test_batch_and_order_of_rows_change_nothing_and_the_seed_does():
    draw = np.random.default_rng(0)
    values, clusters = draw.exponential(size=60), np.array([f"c{i % 20}" for i in range(60)])
    order = draw.permutation(60)
    one = mean(values, clusters).estimate(0.95, seed=1, resamples=1000)
    assert mean(values[order], clusters[order]).estimate(0.95, seed=1, resamples=1000) == one
    assert mean(values, clusters).estimate(0.95, seed=1, resamples=1000, batch=17) == one
    assert mean(values, clusters).estimate(0.95, seed=2, resamples=1000) != one
    assert (one.items, one.clusters) == (60, 20)


def test_rows_of_one_conversation_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 8)  # 8 equal rows a conversation carry the news of one
    together = mean(values, np.repeat(names(20), 8)).estimate(0.95, seed=0, resamples=2000)
    apart = mean(values, names(160)).estimate(0.95, seed=0, resamples=2000)
    alone = mean(values[::8], names(20)).estimate(0.95, seed=0, resamples=2000)
    assert together[1:5] == pytest.approx(alone[1:5])
    assert together.error > 2.5 * apart.error  # sqrt(8)


def test_pairing_removes_what_the_two_share():
    draw = np.random.default_rng(0)
    shared = draw.normal(scale=10, size=50)
    one, two = shared + 0.5, shared + draw.normal(scale=0.1, size=50)
    paired = mean(difference(one, two), names(50)).estimate(0.95, seed=0, resamples=1000)
    assert 0.4 < paired.low < paired.high < 0.6


def test_smallest_effect_and_items_needed_are_the_worked_out_ones():
    found = Estimate(0.55, 0.45, 0.68, 0.95, 0.05, 100, 100)
    power = stats.t.ppf(0.8, 99) * 0.05
    assert found.smallest_effect("low") == pytest.approx(0.1 + power) == pytest.approx(0.1423, abs=1e-4)
    assert found.smallest_effect() == found.smallest_effect("high") == pytest.approx(0.13 + power)
    assert found.items_needed(0.05, "low") == math.ceil(100 * ((0.1 + power) / 0.05) ** 2) == 810
    assert found.items_needed(0.0) is None
    assert found._replace(error=0.0).items_needed(0.1) is None
    assert found._replace(low=-math.inf).items_needed(0.1) is None


def test_agreement_of_all_items_is_no_certainty_where_the_range_is_known():
    five = mean(np.ones(5), names(5), support=(0, 1)).estimate(0.95, seed=0)
    assert five.value == five.high == 1
    assert five.low == pytest.approx(0.025 ** (1 / 5))  # Clopper-Pearson, 5 of 5
    ties = mean(np.full(80, 0.5), names(80), support=(0, 1)).estimate(0.95, seed=0)
    assert ties.low == pytest.approx(1 - ties.high) == pytest.approx(0.4775, abs=1e-3)
    assert ties.error > 0
    level = mean(np.full(80, 0.3), names(80), support=(0, 1)).estimate(0.95, seed=0)
    assert (level.low, level.high) == pytest.approx((0.3 - 0.045 * 0.3, 0.3 + 0.045 * 0.7), abs=2e-3)
    assert level.error > 0


def test_agreement_of_all_items_shows_nothing_where_the_range_is_not_known():
    spread = ratio(array(3, 5), array(3, 5), names(2)).spread(seed=0)  # equal models: no difference on any item
    assert spread.estimate(0.6)[:3] == (1, -math.inf, math.inf)
    assert (spread.p_above(-1e9), spread.p_below(1e9)) == (1, 1)
    assert spread.estimate(0.6).error == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mean(array(), names(0)), "no items"),
        (lambda: perplexity(array(), array(), names(0)), "no items"),
        (lambda: mean(array(1, math.nan), names(2)), "1 of 2 values are NaN or infinite"),
        (lambda: mean(array(1, math.inf), names(2)), "NaN or infinite"),
        (lambda: mean(array(1, 2, 3), names(2)), "unpaired columns of 2 and 3 items"),
        (lambda: ratio(array(1, 2), array(1), names(2)), "unpaired"),
        (lambda: difference(array(1, 2), array(1)), "unpaired: 2 items against 1"),
        (lambda: perplexity(array(1, 2), array(3, 0), names(2)), "1 of 2 items have no tokens"),
        (lambda: mean(array(1), names(1)).estimate(0.95, seed=0), "1 items in 1 conversation"),
        (lambda: mean(array(1, 0), np.array(["a", "a"])).estimate(0.95, seed=0), "at least 2 conversations"),
        (lambda: ratio(array(1, 2), array(0, 3), names(2)).estimate(0.95, seed=0), "does not exist for some resamples"),
        (lambda: ratio(array(1, 2), array(0, 0), names(2)).estimate(0.95, seed=0), "does not exist"),
    ],
)
def test_what_cannot_be_estimated_is_an_error_and_never_a_number(make, said):
    with pytest.raises(DataError, match=said):
        make()


def test_naming_a_gate_imports_nothing_heavy():
    code = (
        "import sys, evals.statistics, evals.gates; sys.exit(bool({'scipy', 'torch', 'evaluate', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
