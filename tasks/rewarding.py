"""Rewards of a policy's answers: by the reward model, or by rules that anybody can check.  Names and numbers, never code.

A total is the sum of weight times value over the entries; a rule's value lies in [0, 1].  Imports no torch.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core.spec import Spec


class _Entry(Spec):
    weight: float = 1.0
    """in the total"""


class ModelReward(_Entry):
    """The reward model's score, less the mean and over the deviation of its scores of the SFT policy's own answers."""

    rule: Literal["reward_model"] = "reward_model"
    """what gives the reward"""
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    """no further than this many deviations from the mean; null: unbounded"""


class RegexReward(_Entry):
    """1 where the pattern is found in the answer."""

    rule: Literal["regex"] = "regex"
    """what gives the reward"""
    pattern: str = Field(min_length=1, max_length=1000)
    """a regular expression, searched with a time limit; `(?i)` ignores case, `^` and `$` are the ends of the answer"""
    forbid: bool = False
    """1 where it is not found instead"""


class NumberReward(_Entry):
    """1 where the last number of the answer is that of the prompt's reference; a prompt without one is refused."""

    rule: Literal["exact_number"] = "exact_number"
    """what gives the reward"""


class JsonReward(_Entry):
    """1 where the whole answer is valid JSON (RFC 8259)."""

    rule: Literal["json"] = "json"
    """what gives the reward"""
    keys: tuple[str, ...] = ()
    """that it must have, as an object"""


class LengthReward(_Entry):
    """1 where the length of the answer lies within the bounds, falling to 0 over as many units again."""

    rule: Literal["length"] = "length"
    """what gives the reward"""
    unit: Literal["characters", "words", "tokens"] = "words"
    """what is counted"""
    at_least: NonNegativeInt = 0
    """the lower bound"""
    at_most: PositiveInt | None = None
    """the upper bound"""


class FinishedReward(_Entry):
    """1 where the answer ended by itself."""

    rule: Literal["finished"] = "finished"
    """what gives the reward"""


AnyReward: TypeAlias = ModelReward | RegexReward | NumberReward | JsonReward | LengthReward | FinishedReward
Reward = Annotated[AnyReward, Field(discriminator="rule")]


def wants_model(rewards: Sequence[AnyReward]) -> bool:
    """Whether one of `rewards` is the reward model's."""
    return any(isinstance(entry, ModelReward) for entry in rewards)
