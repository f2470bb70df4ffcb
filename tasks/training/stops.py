"""When a run of PPO is ended because it goes wrong: too far from the SFT policy, no number, or rewarded for getting worse.

Rows are those of the curve: one per iteration is enough.  Everything here is a pure function of numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.core.errors import GateError
from tasks.ppo import StopSpec

RISING = 2.0
"""standard errors by which the reward must have risen to count as risen"""
Row = Mapping[str, Any]


def check_finite(iteration: int, **values: float) -> None:
    """Raise GateError for the first of `values` that is no number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise GateError(
                f"ppo: iteration {iteration}: {name.replace('_', ' ')} is {value}, so the run is ended; lower learning_rate, "
                "value_learning_rate or max_grad_norm, or raise kl.coefficient"
            )


def check_distance(stop: StopSpec, row: Row) -> None:
    """Raise GateError where the policy is further than `stop.kl` from the SFT policy."""
    if stop.kl is not None and row["kl"] > stop.kl:
        raise GateError(
            f"ppo: iteration {row['iteration']:.0f}: the policy is {row['kl']:.2f} nats per answer from the SFT policy, more "
            f"than stop.kl {stop.kl:g}; raise kl.coefficient, set kl.target, or lower learning_rate"
        )


def check_fall(stop: StopSpec, rows: Sequence[Row], heldout: float | None) -> None:
    """Raise GateError where held-out chosen answers became unlikely while the reward rose: the reward is being gamed.

    rows: one per iteration, from the first on.  heldout: nats per token now; None: not looked at.
    """
    start = next((row["heldout_logp"] for row in rows if "heldout_logp" in row), None)
    if stop.fall is None or heldout is None or start is None or start - heldout <= stop.fall:
        return
    rise, error = risen(rows, stop.every)
    if rise > RISING * error:
        raise GateError(
            f"ppo: iteration {rows[-1]['iteration']:.0f}: the reward rose by {rise:.3f} (standard error {error:.3f}) while "
            f"held-out chosen answers fell from {start:.3f} to {heldout:.3f} nats per token, by more than stop.fall "
            f"{stop.fall:g}: the reward is being gamed; raise kl.coefficient, set kl.target, or mend the reward"
        )


def risen(rows: Sequence[Row], window: int) -> tuple[float, float]:
    """By how much the mean reward of the last iterations exceeds that of the first, and the standard error of that.

    window: iterations at each end, at most half of all.
    """
    width = max(1, min(window, len(rows) // 2))
    first, last = rows[:width], rows[-width:]
    rise = _mean(last, "reward") - _mean(first, "reward")
    variance = sum(row["reward_std"] ** 2 / row["answers"] for row in (*first, *last)) / width**2
    return rise, math.sqrt(variance)


def _mean(rows: Sequence[Row], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)
