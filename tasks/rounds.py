"""Online DPO: sample answers from the newest policy, reward them, pair best with worst, curate, train; for several rounds.

Each round's answers, pairs and policy are artifacts.  Spec here; the rounds are laid out in `flows/rounds.py`.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.preference import DpoSpec
from tasks.rewarding import ModelReward, Rewards
from tasks.train import RowsSpec, rate


class OnlineDpoSpec(RowsSpec):
    """DPO on pairs of the policy's own answers, for several rounds (arXiv:2402.04792, arXiv:2312.11456)."""

    stage = "dpo"
    algorithm: Literal["online_dpo"] = "online_dpo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("dpo")
    beta: PositiveFloat = 0.1
    """pull to the policy that a round starts from, in 1/nats"""
    rounds: PositiveInt = 3
    """of sampling, pairing and training, each from the policy of the one before"""
    prompts: PositiveInt | None = None
    """asked in a round, others in each while they last; null: all"""
    samples: int = Field(default=4, ge=2)
    """answers to one prompt; the best and the worst become a pair"""
    rewards: Rewards = (ModelReward(),)
    """what an answer is worth: the sum of weight times value over the entries"""
    margin: NonNegativeFloat = 0.0
    """in reward; pairs must differ by more than this"""
    max_new_tokens: PositiveInt = 64
    """an answer is cut here, stop token included"""
    temperature: PositiveFloat = 1.0
    """of sampling"""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """taken off the reward of an answer that was cut"""

    @model_validator(mode="after")
    def _room_for_answers(self) -> "OnlineDpoSpec":
        if self.max_new_tokens >= self.max_length:
            raise ValueError(f"max_length {self.max_length} holds prompt and answer, and max_new_tokens is {self.max_new_tokens}")
        return self

    def training(self) -> DpoSpec:
        """What trains one round."""
        return DpoSpec.model_validate({name: getattr(self, name) for name in DpoSpec.model_fields if name != "algorithm"})
