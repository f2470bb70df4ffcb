"""The calibration study in small: seeded, so each count is what it is; tolerances are those of a binomial of as many gates."""

import pytest
from bench.calibration import CASES, at_the_smallest_effect, false_promotions, several
from scipy import stats

GATES = 200
MOST = stats.binom.isf(1e-4, GATES, 0.05) / GATES
"""what a true rate of 5 % exceeds once in ten thousand studies"""


@pytest.mark.parametrize("name", CASES)
def test_where_there_is_nothing_to_promote_at_most_one_gate_in_twenty_passes(name):
    assert max(false_promotions(CASES[name], 10, GATES)) <= MOST


def test_of_five_gates_on_their_bounds_or_two_among_three_that_hold_any_passes_at_most_one_time_in_twenty():
    for better in (0.0, 5.0):
        found = several(20, 100, better)
        assert found["any false pass"] <= stats.binom.isf(1e-4, 100, 0.05) / 100
        assert found["found by Holm"] >= found["found by Bonferroni"]


@pytest.mark.parametrize("name", ["win rate, 40 % ties", "reward difference, normal"])
def test_the_smallest_effect_is_found_about_four_times_of_five(name):
    assert 0.7 < at_the_smallest_effect(name, 20, 200)[1] < 0.92
