"""PPO: policy, value and reward model as adapters on one base, the reference a switch.  Spec and stage; a child does the work."""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.rollouts import OnlineSpec
from tasks.train import Share, rate


class KlSpec(Spec):
    """The pull to the SFT policy: the reward of each token less `coefficient` times its log-ratio (arXiv:1909.08593, eq. 2)."""

    coefficient: NonNegativeFloat = 0.05
    """in reward per nat; where it starts, if there is a target"""
    target: PositiveFloat | None = None
    """nats per answer that the coefficient is steered to, as in section 2.2 of the paper; null: it stays as it is"""
    horizon: PositiveInt = 200
    """answers in which the coefficient grows by a fifth (or falls by one) where the KL is a fifth or more off the target"""


class StopSpec(Spec):
    """When a run is ended because it goes wrong."""

    kl: PositiveFloat | None = 50.0
    """nats per answer to the SFT policy, mean of an iteration; null: never"""
    every: PositiveInt = 5
    """iterations between looks at held-out pairs"""
    pairs: PositiveInt = 32
    """held-out pairs that are looked at"""
    fall: PositiveFloat | None = 0.5
    """nats per token by which held-out chosen answers may become less likely while the reward rises; null: never looked at"""


class PpoSpec(OnlineSpec):
    """Learn from the rewards of the policy's own answers, in small clipped steps (arXiv:1707.06347, arXiv:2203.02155)."""

    stage = "ppo"
    algorithm: Literal["ppo"] = "ppo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("ppo")
    value_learning_rate: PositiveFloat | None = None
    """of the value adapter and its head; null: five times the policy's"""
    ppo_epochs: PositiveInt = 2
    """passes over the answers of an iteration"""
    kl: KlSpec = KlSpec()
    clip: PositiveFloat = 0.2
    """how far the ratio to the sampling policy may move in one iteration: epsilon of eq. 7"""
    value_clip: PositiveFloat = 0.2
    """how far a value may move in one iteration"""
    gamma: Share = 1.0
    """discount per token"""
    lam: Share = 0.95
    """of the advantage's exponential average (arXiv:1506.02438, eq. 16)"""
    whiten: bool = True
    """advantages of an iteration to mean 0 and deviation 1"""
    entropy: NonNegativeFloat = 0.0
    """weight of the entropy in the objective"""
    early_stop: PositiveFloat | None = None
    """nats per token from the sampling policy at which the rest of an iteration's updates is left out; null: never"""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """the stop token cannot come before this many"""
    stop: StopSpec = StopSpec()

    @model_validator(mode="after")
    def _can_end(self) -> "PpoSpec":
        if self.min_new_tokens >= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} leaves no room to stop within max_new_tokens {self.max_new_tokens}"
            )
        return self


PPO = Stage("ppo", 1, "policy", partial(on_base, "ppo"), heavy=True)
"""inputs: policy (the SFT policy), prompts (prompts or preferences), by the plan reward_model, clearance, data (preferences)"""
