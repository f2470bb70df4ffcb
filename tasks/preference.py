"""Policies from pairs that are there beforehand: DPO, KTO, ORPO.  Specs and stages; a child does the work."""

from functools import partial
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.train import RowsSpec, rate


class DpoSpec(RowsSpec):
    """Prefer chosen over rejected answers, staying near the SFT policy (arXiv:2305.18290)."""

    stage = "dpo"
    algorithm: Literal["dpo"] = "dpo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("dpo")
    beta: PositiveFloat = 0.1
    """pull to the reference, in 1/nats"""
    loss: Literal["sigmoid"] = "sigmoid"
    """eq. 7 of the paper"""


class KtoSpec(RowsSpec):
    """Raise answers that people liked and lower those they did not, no pairs needed (arXiv:2402.01306)."""

    stage = "kto"
    algorithm: Literal["kto"] = "kto"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("kto")
    beta: PositiveFloat = 0.1
    """pull to the reference, in 1/nats"""
    desirable_weight: NonNegativeFloat = 1.0
    """of the loss of liked answers; weight times count should be within 1 to 4/3 of the other's (eq. 9)"""
    undesirable_weight: NonNegativeFloat = 1.0
    """of the loss of answers that were not"""

    @model_validator(mode="after")
    def _batch_has_others(self) -> "KtoSpec":
        if self.global_batch < 2:
            raise ValueError("global_batch 1 leaves KTO no answer to another prompt to estimate the KL from; use 2 or more")
        return self


class OrpoSpec(RowsSpec):
    """Imitate chosen answers and raise their odds over rejected ones in one loss, without a reference (arXiv:2403.07691)."""

    stage = "orpo"
    algorithm: Literal["orpo"] = "orpo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("orpo")
    beta: PositiveFloat = 0.1
    """weight of the odds ratio beside imitation: lambda of eq. 6"""


DPO = Stage("dpo", 1, "policy", partial(on_base, "dpo"), heavy=True)
"""inputs: policy (the SFT policy), data (preferences)"""
KTO = Stage("kto", 1, "policy", partial(on_base, "kto"), heavy=True)
"""inputs: policy (the SFT policy), data (preferences or feedback)"""
ORPO = Stage("orpo", 1, "policy", partial(on_base, "orpo"), heavy=True)
"""inputs: policy (the SFT policy), data (preferences)"""
