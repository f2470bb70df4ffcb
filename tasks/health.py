"""Before a policy learns from a reward model: the model's health card, and the clearance to use it.

The card measures and judges; the clearance stops the run on a weak model, once the card is there to be read.  The clearance holds
nothing but how scores are normalised, so that another bound judges afresh and trains nothing again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core.contract import Metrics, Run, Stage
from tasks.core.spec import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class ClearanceSpec(Spec):
    """Whether a policy may learn from the reward model."""

    accept_weak: bool = False
    """go on with a reward model that its health card calls weak"""


class HealthSpec(Spec):
    """What a reward model must show before a policy may learn from it."""

    accuracy: Share = 0.5
    """the lower end of the interval of its accuracy on held-out pairs must reach this"""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """of the intervals"""
    seed: NonNegativeInt = 0
    """of the resampling"""
    answers: PositiveInt = 64
    """of the SFT policy, scored to see how scores are distributed and to normalise them"""
    accept_weak: bool = False
    """go on with a weak one all the same"""

    def clearance(self) -> ClearanceSpec:
        """What the clearance is decided by."""
        return ClearanceSpec(accept_weak=self.accept_weak)


def health(spec: HealthSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `health.json` and `health.md`."""
    raise NotImplementedError


def clear(spec: ClearanceSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `clearance.json`: how to normalise scores.  Raises GateError for a weak model."""
    raise NotImplementedError


HEALTH = Stage("health", 1, "health", health)
"""inputs: scores (of pairs and of answers_sft), answers (of the SFT policy), reward_model, policy, preferences"""
CLEARANCE = Stage("clearance", 1, "health", clear)
"""inputs: health"""
