"""What training on a policy's own answers is asked for, whatever the algorithm.  Spec only."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.core.spec import Json
from tasks.methods import VLLM_METHODS
from tasks.rewarding import ModelReward, RewardsAtOnce
from tasks.train import TrainSpec

_COLDEST = 0.01
"""temperature below which vLLM samples as if it were this"""


class OnlineSpec(TrainSpec):
    """Let the policy answer, reward the answers, learn from them, and again."""

    rewards: RewardsAtOnce = (ModelReward(),)
    """what an answer is worth: the sum of weight times value over the entries"""
    iterations: PositiveInt = 20
    """times that answers are sampled and learned from"""
    rollout_batch: PositiveInt = 32
    """answers per iteration; a multiple of global_batch"""
    max_new_tokens: PositiveInt = 64
    """an answer is cut here, stop token included"""
    temperature: PositiveFloat = 1.0
    """of sampling, and of the probabilities that are learned from"""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """taken off the reward of an answer that was cut"""
    dropped_budget: Annotated[float, Field(ge=0, le=1)] = 0.01
    """share of prompts that may be left out because they leave no room for an answer in max_length, before the stage fails"""
    engine: Literal["transformers", "vllm"] = "transformers"
    """who writes the answers: the model that is trained itself, or a vLLM server that the environment names (ALIGN_VLLM_URL)"""
    later: ClassVar[Mapping[str, Json]] = {"engine": "transformers"}

    @model_validator(mode="after")
    def _engine_serves(self) -> "OnlineSpec":
        if self.engine == "vllm":
            if self.method.name not in VLLM_METHODS:
                raise ValueError(
                    "engine vllm: vLLM takes up nothing but plain LoRA adapters while it runs, and method "
                    f"{self.method.name} leaves none; use one of {', '.join(VLLM_METHODS)}, or engine: transformers"
                )
            if self.temperature < _COLDEST:
                raise ValueError(
                    f"engine vllm: vLLM samples at temperatures of {_COLDEST:g} and more, and {self.temperature:g} is asked for; "
                    "raise it, or use engine: transformers"
                )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "OnlineSpec":
        if self.rollout_batch % self.global_batch:
            raise ValueError(f"rollout_batch {self.rollout_batch} is no multiple of global_batch {self.global_batch}")
        if self.max_new_tokens >= self.max_length:
            raise ValueError(f"max_length {self.max_length} holds prompt and answer, and max_new_tokens is {self.max_new_tokens}")
        return self
