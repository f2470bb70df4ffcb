# pyright: basic
"""What a policy's answers are worth: rules and reward model, an entry at a time and in total."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tasks.core.errors import AlignError, GateError, SpecError
from tasks.rewarding import Answer, ModelReward, normalised, total, values
from tasks.rollouts import OnlineSpec
from tasks.training.data import Encoder, Messages
from tasks.training.fit import REWARD_OF


class Scores(Protocol):
    """A reward model, wherever it lies."""

    def scores(self, texts: Sequence[tuple[Messages, str]], batch: int) -> list[float]:
        """The score of each (prompt, answer)."""
        ...


class Rewarded(NamedTuple):
    """Answers and what they are worth, in the order of the answers."""

    answers: list[Answer]
    total: list[float]
    """less the penalty of answers that were cut"""
    entries: dict[str, list[float]]
    """name in the curve -> values without the weight"""


@dataclass(frozen=True)
class Rewarder:
    """Judges answers to `rows`."""

    spec: OnlineSpec
    encoder: Encoder
    rows: Sequence[dict[str, Any]]
    """prompts: id, prompt, reference"""
    model: Scores | None = None
    mean: float = 0.0
    """of the reward model's scores of the SFT policy's answers"""
    std: float = 1.0
    batch: int = 8
    """texts that the reward model reads at once"""

    def __call__(self, numbers: Sequence[int], answers: Sequence[Sequence[int]]) -> Rewarded:
        """numbers: of the prompts.  answers: tokens, stop token included.  Raises GateError for a reward that is no number."""
        found = [self._read(self.rows[number], tokens) for number, tokens in zip(numbers, answers, strict=True)]
        columns = [self._column(entry, numbers, found) for entry in self.spec.rewards]
        worth = total(self.spec.rewards, columns)
        less = [self.spec.missing_eos_penalty * (not answer.finished) for answer in found]
        rewarded = [value - penalty for value, penalty in zip(worth, less, strict=True)]
        if wrong := [answer for answer, value in zip(found, rewarded, strict=True) if not abs(value) < float("inf")]:
            raise GateError(
                f"{self.spec.stage}: the reward of an answer to prompt {wrong[0].prompt} is no number, so the run is ended"
            )
        return Rewarded(found, rewarded, dict(zip(self.names(), columns, strict=True)))

    def names(self) -> list[str]:
        """What the entries are called in the curve; those of one rule by their places."""
        rules = [entry.rule for entry in self.spec.rewards]
        return [REWARD_OF + (rule if rules.count(rule) == 1 else f"{rule}-{at + 1}") for at, rule in enumerate(rules)]

    def _read(self, row: dict[str, Any], tokens: Sequence[int]) -> Answer:
        finished = tokens[-1] in self.encoder.stops
        said = list(tokens[:-1] if finished else tokens)
        text = self.encoder.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Answer(str(text), len(said), finished, row.get("reference"), row["id"])

    def _column(self, entry: Any, numbers: Sequence[int], answers: Sequence[Answer]) -> list[float]:  # noqa: ANN401
        if not isinstance(entry, ModelReward):
            return values(entry, answers)
        if self.model is None:
            raise AlignError(f"{self.spec.stage}: a reward by the reward model, and it is not there")
        texts = [(self.rows[number]["prompt"], answer.text) for number, answer in zip(numbers, answers, strict=True)]
        return normalised(entry, self.model.scores(texts, self.batch), mean=self.mean, std=self.std)


def missing(spec: OnlineSpec, inputs: Any) -> None:  # noqa: ANN401  any container of names
    """Raise SpecError where the reward model is asked for and it, or how its scores are normalised, is not among the inputs."""
    if lacking := [name for name in ("reward_model", "clearance") if name not in inputs]:
        raise SpecError(
            f"{spec.stage}: rewards name the reward model, and the input {lacking[0]} is missing; give it, or use rules alone"
        )
