"""GRPO and RLOO: no value model, an answer is compared with others to its prompt.  Specs and stages; a child does the work."""

from functools import partial
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.rollouts import OnlineSpec
from tasks.train import rate


class GroupSpec(OnlineSpec):
    """What algorithms that compare the answers to one prompt are asked for."""

    samples: int = Field(default=4, ge=2)
    """answers to one prompt; they are each other's baseline"""
    beta: NonNegativeFloat = 0.05
    """weight of the KL to the SFT policy, in 1/nats; 0: none, and it is not measured"""
    updates: PositiveInt = 1
    """passes over the answers of an iteration"""
    clip: PositiveFloat = 0.2
    """how far the ratio to the sampling policy may move in one iteration"""
    stop_kl: PositiveFloat | None = 5.0
    """nats per token to the SFT policy, mean of a step, at which the run is ended; null: never"""

    @model_validator(mode="after")
    def _groups_fit(self) -> "GroupSpec":
        if self.rollout_batch % self.samples:
            raise ValueError(f"rollout_batch {self.rollout_batch} is no multiple of samples {self.samples}; make it one")
        return self


class GrpoSpec(GroupSpec):
    """Advantages from the mean and deviation of a prompt's answers (arXiv:2402.03300)."""

    stage = "grpo"
    algorithm: Literal["grpo"] = "grpo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("grpo")


class RlooSpec(GroupSpec):
    """Advantages from the mean reward of a prompt's other answers: REINFORCE, leave one out (arXiv:2402.14740)."""

    stage = "rloo"
    algorithm: Literal["rloo"] = "rloo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("rloo")


GRPO = Stage("grpo", 1, "policy", partial(on_base, "grpo"), heavy=True)
"""inputs: policy (the SFT policy), prompts (prompts or preferences), by the plan reward_model, clearance"""
RLOO = Stage("rloo", 1, "policy", partial(on_base, "rloo"), heavy=True)
"""inputs: the same"""
