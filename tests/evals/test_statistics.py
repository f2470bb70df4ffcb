"""Estimates: worked-out numbers, scipy's own, honest coverage, and no number where there is none."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from evals.statistics import Estimate, Sample, difference, mean, perplexity, perplexity_ratio, ratio, shares
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


def test_interval_and_error_are_scipys_at_the_widened_level():
    values = np.random.default_rng(3).normal(size=25)
    found = mean(values, names(25)).estimate(0.9, seed=7, resamples=2000)
    level = 1 - 2 * stats.norm.sf(math.sqrt(25 / 24) * stats.t.ppf(0.95, 24))
    want = stats.bootstrap(
        (np.sort(values), np.ones(25)),
        lambda v, w, axis: v.sum(axis=axis) / w.sum(axis=axis),
        paired=True, n_resamples=2000, confidence_level=level, rng=np.random.default_rng(7),
    )  # fmt: skip
    assert 0.9 < level < 0.93
    again = mean(np.sort(values), names(25)).estimate(0.9, seed=7, resamples=2000)
    assert (again.low, again.high) == pytest.approx(want.confidence_interval)
    assert again.error == pytest.approx(want.standard_error * math.sqrt(25 / 24))
    assert again.error == pytest.approx(values.std(ddof=1) / 5, rel=0.05)
    assert found.value == pytest.approx(values.mean())


def test_batch_and_order_of_rows_change_nothing_and_the_seed_does():
    draw = np.random.default_rng(0)
    values, clusters = draw.normal(size=60), np.array([f"c{i % 20}" for i in range(60)])
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


@pytest.mark.parametrize(
    ("draw", "support", "truth"),
    [
        (lambda rng: (rng.binomial(1, 0.8, 30).astype(float), np.ones(30)), (0.0, 1.0), 0.8),
        (lambda rng: (rng.normal(1, 2, 10), np.ones(10)), None, 1.0),
        (lambda rng: ((w := rng.poisson(20, 25) + 1.0) * rng.gamma(4, 0.25, 25), w), None, 1.0),
    ],
    ids=["share", "few", "ratio"],
)
def test_an_interval_covers_the_truth_about_as_often_as_it_says(draw, support, truth):
    rng, misses = np.random.default_rng(11), 0
    for _ in range(300):
        columns = draw(rng)
        found = Sample(columns, names(len(columns[0])), lambda a, b: a / b, support).estimate(0.9, seed=1, resamples=500)
        misses += not found.low <= truth <= found.high
    assert misses / 300 < 0.145  # 0.1 and 2.6 standard errors


def test_the_smallest_effect_is_seen_four_times_of_five():
    rng, n, seen = np.random.default_rng(5), 40, 0
    effect = mean(rng.normal(size=4000), names(4000)).estimate(0.95, seed=0, resamples=1000).error * math.sqrt(4000 / n)
    effect *= stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)
    for _ in range(300):
        found = mean(rng.normal(effect, 1, n), names(n)).estimate(0.95, seed=1, resamples=500)
        seen += found.low >= 0
    assert 0.7 < seen / 300 < 0.9


def test_smallest_effect_and_items_needed_are_the_worked_out_ones():
    found = Estimate(0.55, 0.45, 0.65, 0.95, 0.05, 100, 100)
    want = (stats.t.ppf(0.975, 99) + stats.t.ppf(0.8, 99)) * 0.05
    assert found.smallest_effect() == pytest.approx(want) == pytest.approx(0.1415, abs=1e-3)
    assert found.items_needed(0.05) == math.ceil(100 * (want / 0.05) ** 2) == 801
    assert found.items_needed(0.0) is None
    assert found._replace(error=0.0).items_needed(0.1) is None


def test_agreement_of_all_items_is_no_certainty_where_the_range_is_known():
    five = mean(np.ones(5), names(5), support=(0, 1)).estimate(0.95, seed=0)
    assert five.value == five.high == 1
    assert five.low == pytest.approx(0.025 ** (1 / 5))  # Clopper-Pearson, 5 of 5
    ties = mean(np.full(80, 0.5), names(80), support=(0, 1)).estimate(0.95, seed=0)
    assert ties.low == pytest.approx(1 - ties.high) == pytest.approx(0.4775, abs=1e-3)
    assert ties.error > 0
    equal = ratio(array(3, 5), array(3, 5), names(2)).estimate(0.95, seed=0)
    assert equal[:3] == (1, 1, 1)  # equal models: no difference on any item
    assert equal.error == 0


def test_a_failed_bias_correction_falls_back_to_percentiles(monkeypatch):
    real = stats.bootstrap

    def broken(*args, **named):
        result = real(*args, **named)
        return type(result)(
            type(result.confidence_interval)(math.nan, math.nan), result.bootstrap_distribution, result.standard_error
        )

    monkeypatch.setattr(stats, "bootstrap", broken)
    values = np.random.default_rng(0).normal(size=30)
    found = mean(values, names(30)).estimate(0.95, seed=0)
    assert found.low < values.mean() < found.high


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
