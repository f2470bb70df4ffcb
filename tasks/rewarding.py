"""Rewards of a policy's answers: by the reward model, or by rules that anybody can check.  Names and numbers, never code.

A total is the sum of weight times value over the entries; a rule's value lies in [0, 1].  Imports no torch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeAlias

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from evals.numbers import last_number
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.spec import Spec

TIME_LIMIT = 1.0
"""seconds that a pattern may search one answer"""


class Answer(NamedTuple):
    """What a rule sees of an answer."""

    text: str
    tokens: int
    """of the text, the stop token left out"""
    finished: bool
    """it ended by itself"""
    reference: str | None
    """what the prompt's source gives as the right answer"""
    prompt: str = ""
    """id of the prompt, for messages"""


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

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            _compiled(pattern)
        except ValueError as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return pattern


class NumberReward(_Entry):
    """1 where the last number of the answer is that of the prompt's reference; a prompt without one is refused.

    Where a text says `####`, as GSM8K's do, only what comes after the last one is read.  Signs, thousands separators and
    fractions count, currency and percent signs do not: $5.00 is 5, 50 % is 50.
    """

    rule: Literal["exact_number"] = "exact_number"
    """what gives the reward"""


class JsonReward(_Entry):
    """1 where the whole answer is valid JSON (RFC 8259)."""

    rule: Literal["json"] = "json"
    """what gives the reward"""
    keys: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """that it must have, as an object"""


class LengthReward(_Entry):
    """1 where the length of the answer lies within the bounds, falling to 0 over as many units again."""

    rule: Literal["length"] = "length"
    """what gives the reward"""
    unit: Literal["characters", "words", "tokens"] = "words"
    """what is counted; words are what white space separates"""
    at_least: NonNegativeInt = 0
    """the lower bound"""
    at_most: PositiveInt | None = None
    """the upper bound"""

    @model_validator(mode="after")
    def _bounds_something(self) -> "LengthReward":
        if self.at_least == 0 and self.at_most is None:
            raise ValueError("a length without bounds rewards everything alike; give at_least, at_most or both")
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}, so no answer is within; swap them?")
        return self


class FinishedReward(_Entry):
    """1 where the answer ended by itself."""

    rule: Literal["finished"] = "finished"
    """what gives the reward"""


class JudgeReward(_Entry):
    """What a language model behind an endpoint thinks of the answer, from 1 as 0 to the best score as 1; see `tasks.judging`."""

    rule: Literal["judge"] = "judge"
    """what gives the reward"""
    model: str = Field(min_length=1)
    """the name that the endpoint, which the environment names, knows it by"""
    instruction: str = Field(
        default="A good answer does what was asked, is right, and is clear and no longer than it must be.", min_length=1
    )
    """what a good answer is"""
    scale: int = Field(default=10, ge=2, le=100)
    """the best score; 1 is the worst"""
    temperature: NonNegativeFloat | None = 0.0
    """of the judge; null: what the endpoint takes by itself"""
    unread_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """share of answers that may stay without a score because the judge gives none, before the stage fails"""


AnyReward: TypeAlias = ModelReward | RegexReward | NumberReward | JsonReward | LengthReward | FinishedReward | JudgeReward
Reward = Annotated[AnyReward, Field(discriminator="rule")]
RULES = ("reward_model", "regex", "exact_number", "json", "length", "finished", "judge")
"""what `rule` may say"""


def _weighed(rewards: tuple[AnyReward, ...]) -> tuple[AnyReward, ...]:
    if not any(entry.weight for entry in rewards):
        raise ValueError("every weight is 0, so all answers are worth the same; give one a weight")
    return rewards


Rewards = Annotated[tuple[Reward, ...], Field(min_length=1), AfterValidator(_weighed)]
"""what an answer is worth: the sum of weight times value over the entries"""


def _judged_at_once(rewards: tuple[AnyReward, ...]) -> tuple[AnyReward, ...]:
    if any(isinstance(entry, JudgeReward) for entry in rewards):
        raise ValueError(
            "a judge is asked over the network, which only algorithm online_dpo waits for; use that, or other rewards"
        )
    return rewards


RewardsAtOnce = Annotated[Rewards, AfterValidator(_judged_at_once)]
"""the same, for answers that are learned from as they are sampled"""


def wants_model(rewards: Sequence[AnyReward]) -> bool:
    """Whether one of `rewards` is the reward model's."""
    return any(isinstance(entry, ModelReward) for entry in rewards)


def wants_references(rewards: Sequence[AnyReward]) -> bool:
    """Whether one of `rewards` compares with the prompt's reference."""
    return any(isinstance(entry, NumberReward) for entry in rewards)


def check_references(rewards: Sequence[AnyReward], references: Mapping[str, str | None]) -> None:
    """Refuse a prompt (id -> reference) that `rewards` cannot judge, before anything is sampled, with a DataError."""
    if wants_references(rewards):
        for prompt, reference in references.items():
            _wanted(reference, prompt)


def values(entry: AnyReward, answers: Sequence[Answer]) -> list[float]:
    """What the rule `entry` gives to each answer, in [0, 1] and without its weight.

    Raises SpecError for a pattern that takes too long, DataError for an exact number without a reference, AlignError for the
    reward model, which is no rule.
    """
    rule = _VALUES[entry.rule]
    return [rule(entry, answer) for answer in answers]


def normalised(entry: ModelReward, scores: Sequence[float], *, mean: float, std: float) -> list[float]:
    """Scores of the reward model as values of `entry`, in deviations from the mean.  NaN stays NaN."""
    units = [(score - mean) / std for score in scores]
    clip = entry.clip
    return units if clip is None else [unit if unit != unit else max(-clip, min(clip, unit)) for unit in units]


def total(entries: Sequence[AnyReward], columns: Sequence[Sequence[float]]) -> list[float]:
    """What each answer is worth.  columns: for each entry the values of all answers.  Raises AlignError if they do not fit.

    >>> total([FinishedReward(), JsonReward(weight=-0.5)], [[1.0, 0.0], [1.0, 1.0]])
    [0.5, -0.5]
    """
    if len(entries) != len(columns) or len({len(column) for column in columns}) > 1:
        raise AlignError(f"rewards: {len(entries)} entries, and columns of {[len(column) for column in columns]} answers")
    weights = [entry.weight for entry in entries]
    return [sum(weight * value for weight, value in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]


# -- the rules ---------------------------------------------------------------------------------------------------


def _compiled(pattern: str) -> Any:  # noqa: ANN401  the package has no types
    """The compiled pattern, from the cache of `regex`.  Raises ValueError for one that is none."""
    import warnings

    import regex  # pyright: ignore[reportMissingModuleSource]  slow to import; the standard library's has no time limit

    try:
        with warnings.catch_warnings(action="ignore"):
            return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _regex(entry: RegexReward, answer: Answer) -> float:
    try:
        found = _compiled(entry.pattern).search(answer.text, timeout=TIME_LIMIT) is not None
    except TimeoutError as error:
        raise SpecError(
            f"rewards: the pattern {entry.pattern!r} searched an answer of {len(answer.text)} characters for more than "
            f"{TIME_LIMIT:g} s; write it without repeats inside repeats such as (a+)+"
        ) from error
    return float(found != entry.forbid)


def _number(entry: NumberReward, answer: Answer) -> float:
    return float(last_number(answer.text) == _wanted(answer.reference, answer.prompt))


def _wanted(reference: str | None, prompt: str) -> Any:  # noqa: ANN401  a fraction
    number = last_number(reference or "")
    if number is None:
        what = "no reference" if reference is None else f"no number in its reference {reference!r:.60}"
        raise DataError(
            f"prompt {prompt or 'without an id'}: the reward exact_number needs a number to compare with, and there is {what}; "
            "add references to data.practice, or use another reward"
        )
    return number


def _json(entry: JsonReward, answer: Answer) -> float:
    try:  # numbers are not converted: their size is nobody's business, and Python refuses long ones
        found = json.loads(answer.text, parse_constant=_refused, parse_int=_unread, parse_float=_unread)
    except (ValueError, RecursionError):
        return 0.0
    return float(not entry.keys or (isinstance(found, dict) and all(key in found for key in entry.keys)))


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, though Python reads it")


def _unread(digits: str) -> int:
    return 0


def _length(entry: LengthReward, answer: Answer) -> float:
    length = _LENGTHS[entry.unit](answer)
    if length < entry.at_least:
        return length / entry.at_least
    if entry.at_most is not None and length > entry.at_most:
        return max(0.0, 2 - length / entry.at_most)
    return 1.0


_LENGTHS: dict[str, Callable[[Answer], int]] = {
    "characters": lambda answer: len(answer.text),
    "words": lambda answer: len(answer.text.split()),
    "tokens": lambda answer: answer.tokens,
}


def _finished(entry: FinishedReward, answer: Answer) -> float:
    return float(answer.finished)


def _no_rule(entry: ModelReward | JudgeReward, answer: Answer) -> NoReturn:
    source = "the judge" if isinstance(entry, JudgeReward) else "the reward model"
    raise AlignError(f"rewards: the score of {source} comes from {source}, not from a rule")


_VALUES: dict[str, Callable[[Any, Answer], float]] = {
    "reward_model": _no_rule,
    "regex": _regex,
    "exact_number": _number,
    "json": _json,
    "length": _length,
    "finished": _finished,
    "judge": _no_rule,
}
