"""The forgetting matrix's numbers, checked by hand on losses that are simple enough."""

import numpy as np
import pytest

from evals.forgetting import MEANINGS, cell, summary
from evals.scores import Series
from tasks.continual_report import markdown, table
from tasks.core.errors import DataError

LOSSES = np.array(  # rows: base, after 1, 2, 3; columns: tasks
    [[5.0, 6.0, 7.0], [1.0, 5.5, 6.0], [2.0, 1.5, 6.5], [4.0, 1.25, 2.0]]
)


def series(mean, n=40, shift=0, seed=0):
    """Losses around `mean` on n items of 1 to 3 tokens, their token-weighted mean exactly `mean`."""
    draw = np.random.default_rng(seed)
    weights = draw.integers(1, 4, n).astype(float)
    noise = draw.normal(0, 0.1, n)
    values = mean + noise - (noise * weights).sum() / weights.sum()
    names = np.array([f"{i + shift:03}" for i in range(n)])
    return Series(names, names, values, weights)


@pytest.fixture
def losses():
    return {(i, j): series(LOSSES[i, j], seed=j) for i in range(4) for j in range(3)}


def test_the_averages_are_those_of_the_formulas(losses):
    found = {name: value["value"] for name, value in summary(losses, 3, level=0.95, seed=0).items()}
    assert found == pytest.approx(
        {
            "average_forgetting": ((4.0 - 1.0) + (1.25 - 1.5)) / 2,  # the second task got better after it was learned
            "backward_transfer": ((1.0 - 4.0) + (1.5 - 1.25)) / 2,
            "forward_transfer": ((6.0 - 5.5) + (7.0 - 6.5)) / 2,
            "final_loss": (4.0 + 1.25 + 2.0) / 3,
        }
    )
    assert found.keys() == MEANINGS.keys()


def test_forgetting_counts_from_the_best_row_whenever_it_was(losses):
    losses[2, 0] = series(0.5, seed=0)  # the second task taught the first one
    assert summary(losses, 3, level=0.95, seed=0)["average_forgetting"]["value"] == pytest.approx((3.5 - 0.25) / 2)


def test_intervals_hold_the_value_and_paired_noise_cancels(losses):
    told = summary(losses, 3, level=0.95, seed=0)
    for value in told.values():
        assert value["low"] <= value["value"] <= value["high"]
    # one task's rows share their noise, so their difference is certain, while the mean loss is not
    assert told["backward_transfer"]["high"] - told["backward_transfer"]["low"] < 1e-9
    assert told["final_loss"]["high"] - told["final_loss"]["low"] > 0.01


def test_a_cell_compares_with_just_after_learning_and_only_later_rows_do(losses):
    assert cell(losses, 1, 0, level=0.95, seed=0)["ratio"] is None
    assert cell(losses, 0, 2, level=0.95, seed=0)["ratio"] is None
    late = cell(losses, 3, 0, level=0.95, seed=0)
    assert late["value"] == pytest.approx(4.0)
    assert late["low"] < 4.0 < late["high"]
    assert late["ratio"]["value"] == pytest.approx(np.exp(3.0))
    assert late["tokens"] == losses[3, 0].weights.sum()


def test_where_all_items_say_the_same_the_ends_of_the_interval_are_not_known(losses):
    losses[3, 0] = losses[1, 0]  # a task with an adapter of its own is answered as it was when it was learned
    found = cell(losses, 3, 0, level=0.95, seed=0)
    assert found["ratio"] == {"value": 1.0, "low": None, "high": None, "items": 40}
    shown = {**found, "low": None, "high": None}
    record = {"tasks": ["birds"], "rows": ["after"], "cells": [[shown]], "level": 0.95, "averages": {}, "apart": False}
    record["seen_in_training"] = {}
    assert f"| after | {found['value']:.3f} [?, ?] (1.00) |" in markdown(record)
    assert [str(cell) for cell in table(record).columns[1].cells] == [f"{found['value']:.3f} (1.00)"]


def test_one_task_has_no_transfer_and_other_items_are_refused(losses):
    told = summary(losses, 1, level=0.95, seed=0)
    assert [told[name] for name in ("average_forgetting", "backward_transfer", "forward_transfer")] == [None] * 3
    losses[3, 0] = series(4.0, shift=1, seed=0)
    with pytest.raises(DataError, match="task 1: rows 3 and 1 were not measured on the same tokens"):
        cell(losses, 3, 0, level=0.95, seed=0)
