"""The training stages: pre-training, supervised fine-tuning, reward model.  Specs and stages; a child does the work.

What makes the policy after them is in `preference`, `ppo`, `group` and `rounds`; `algorithms` lists it.
"""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.methods import Lora, Method, StageName, check_stage, learning_rate

Share = Annotated[float, Field(ge=0, le=1)]


def rate(stage: StageName) -> Any:  # noqa: ANN401  pydantic's own field type
    """The default of a spec's `method` in `stage`, as a field."""
    said = "at the peak of the schedule; null: the method's default for this stage"
    return Field(default_factory=lambda data: learning_rate(stage, data["method"]), description=said)


class TrainSpec(Spec):
    """What every kind of training is asked for."""

    stage: ClassVar[StageName]
    method: Method = Lora()
    """how weights are made trainable"""
    learning_rate: PositiveFloat
    """at the peak of the schedule; null: the method's default for this stage"""
    global_batch: PositiveInt = 16
    """rows (pairs, answers) per optimiser step, over all processes and accumulation"""
    max_length: PositiveInt = 1024
    """tokens of one text, prompt included"""
    warmup: Share = 0.1
    """share of the steps in which the learning rate rises"""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """how the learning rate falls after the warm-up"""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, per step and learning rate"""
    max_grad_norm: PositiveFloat = 1.0
    """longer gradients are scaled down to this length"""
    seed: NonNegativeInt = 0
    """of initial adapters and heads, data order and dropout"""

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:  # noqa: ANN401  fields, or a finished spec
        if not isinstance(data, dict):
            return data
        fields: dict[str, Any] = {**data}
        return {name: value for name, value in fields.items() if (name, value) != ("learning_rate", None)}

    @field_validator("method")
    @classmethod
    def _method_fits(cls, method: Any) -> Any:  # noqa: ANN401  the union above
        check_stage(cls.stage, method)
        return method


class RowsSpec(TrainSpec):
    """What training on rows that are there beforehand is asked for."""

    epochs: PositiveFloat = 1.0
    """passes over the data; the last batch is filled up from the next pass"""
    max_steps: PositiveInt | None = None
    """optimiser steps instead of epochs"""
    dropped_budget: Share = 0.01
    """share of rows that may be left out because they do not fit max_length, before the stage fails"""


class PretrainSpec(RowsSpec):
    """Go on with pre-training on plain text: the next token, every token, rows packed full of texts."""

    stage = "pretrain"
    learning_rate: PositiveFloat = rate("pretrain")


class SftSpec(RowsSpec):
    """Imitate the assistant's turns of the instructions."""

    stage = "sft"
    learning_rate: PositiveFloat = rate("sft")


class RewardSpec(RowsSpec):
    """Score answers so that chosen beat rejected (Bradley-Terry), starting from the SFT policy with a scalar head."""

    stage = "reward"
    learning_rate: PositiveFloat = rate("reward")
    center_rewards_coefficient: NonNegativeFloat = 0.01
    """weight of the squared sum of a pair's scores, which pulls their mean to 0 (arXiv:2312.09244)"""


PRETRAIN = Stage("pretrain", 1, "policy", partial(on_base, "pretrain"), heavy=True)
"""inputs: policy, data (texts)"""
SFT = Stage("sft", 1, "policy", partial(on_base, "sft"), heavy=True)
"""inputs: policy, data (instructions)"""
REWARD = Stage("reward", 1, "reward_model", partial(on_base, "reward"), heavy=True)
"""inputs: policy (the SFT policy), data (preferences)"""
