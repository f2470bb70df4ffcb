# pyright: basic
"""A policy's answers to prompts that it practises on, and what is known of them: an iteration's rollout, kept whole on disk.

Every answer has random draws of its own, by seed, iteration, prompt and sample, so it does not depend on the batch it was written
in, and a run that is started again draws the same.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.core.files import sync
from tasks.training.batches import by_length
from tasks.training.data import Encoded, Encoder
from tasks.training.generate import TOKENS, decode, uniform

ROLLOUTS = "rollouts"
"""folder in the work folder: one file per iteration"""


class Ask(NamedTuple):
    """One answer that is wanted."""

    prompt: Sequence[int]
    """tokens"""
    name: str
    """decides the random draws, together with the seed"""


class Engine(Protocol):
    """Whatever writes a policy's answers."""

    gap: float | None
    """nats per token that the last answers' writer is off the model that is trained; None: it is that model"""

    def answers(self, asked: Sequence[Ask], progress: Callable[[int, int], None]) -> list[list[int]]:
        """Tokens of each answer, the stop token included; `progress(done, all)` is called now and then."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class TransformersEngine:
    """Answers by the model that is trained itself: prompts of like length together, key-value cache, finished rows leave."""

    gap: float | None = None

    def __init__(
        self,
        model: Any,  # noqa: ANN401  transformers and PEFT models
        encoder: Encoder,
        *,
        new_tokens: int,
        silent: int,
        temperature: float,
        seed: int,
        rows: int,
    ) -> None:
        """`model` answers in the role it has when asked.  new_tokens, silent: the most tokens, and those before a stop token may
        come.  rows: at once."""
        self._model, self._encoder = model, encoder
        self._new_tokens, self._silent, self._temperature = new_tokens, silent, temperature
        self._seed, self._rows = seed, rows

    def answers(self, asked: Sequence[Ask], progress: Callable[[int, int], None]) -> list[list[int]]:
        """Tokens of each answer."""
        draws = np.stack([uniform(self._seed, ask.name, self._new_tokens) for ask in asked])
        found: list[list[int]] = [[] for _ in asked]
        done = 0
        lengths = [len(ask.prompt) + self._new_tokens for ask in asked]
        for batch in by_length(lengths, rows=self._rows, tokens=TOKENS[self._model.device.type]):
            pick = self._picker(draws[batch])
            spoken = decode(self._model, [list(asked[i].prompt) for i in batch], self._encoder, self._new_tokens, pick)
            for i, tokens in zip(batch, spoken, strict=True):
                found[i] = tokens
            done += len(batch)
            progress(done, len(asked))
        return found

    def close(self) -> None:
        """Nothing is held."""

    def _picker(self, draws: np.ndarray) -> Callable[[Tensor, list[int], int], Tensor]:
        stops = sorted(self._encoder.stops)

        def pick(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
            if step < self._silent:
                logits_BV[:, stops] = -torch.inf
            return sampled(logits_BV, draws[rows, step], temperature=self._temperature)

        return pick


def sampled(logits_BV: Tensor, uniform_B: np.ndarray, *, temperature: float) -> Tensor:
    """A token of each row, by inverting its distribution at its number in [0, 1); (B,)."""
    upto_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).cumsum(dim=-1)
    at_B = torch.from_numpy(uniform_B).to(logits_BV.device)[:, None] * upto_BV[:, -1:]
    return torch.searchsorted(upto_BV, at_B, right=True).clamp(max=logits_BV.shape[1] - 1)[:, 0]


def room_for(encoder: Encoder, rows: Sequence[dict[str, Any]], *, max_length: int, new_tokens: int) -> Encoded:
    """Rows that leave room for an answer of `new_tokens` in `max_length`, with their tokens as `prompt_ids`."""
    result = Encoded(total=len(rows))
    for row in encoder.prepared(rows):
        ids = encoder.prompt(row["prompt"])
        if len(ids) + new_tokens > max_length:
            result.dropped["prompts without room for an answer in max_length"] += 1
        else:
            result.rows.append({**row, "prompt_ids": ids})
    return result


def asked_order(count: int, *, iterations: int, batch: int, seed: int) -> list[list[int]]:
    """Numbers of the prompts that each iteration asks; each pass over the prompts is shuffled anew."""
    draw, stream = random.Random(seed), []
    while len(stream) < iterations * batch:
        stream += draw.sample(range(count), count)
    return [stream[i * batch : (i + 1) * batch] for i in range(iterations)]


def asks(rows: Sequence[dict[str, Any]], numbers: Sequence[int], iteration: int) -> list[Ask]:
    """What iteration `iteration` asks: a prompt that comes several times gets several samples."""
    seen: dict[int, int] = {}
    found = []
    for number in numbers:
        sample = seen[number] = seen.get(number, -1) + 1
        found.append(Ask(rows[number]["prompt_ids"], f"{iteration}\n{rows[number]['id']}\n{sample}"))
    return found


@dataclass(frozen=True)
class Rollout:
    """An iteration's answers and what every role said of them.  N: answers, S: tokens of all answers, E: reward entries."""

    prompts: list[int]
    """numbers of the prompts; N"""
    answers: list[list[int]]
    """tokens, the stop token included; N"""
    finished_N: Tensor
    score_N: Tensor
    """reward before the pull to the reference, float64"""
    entry_EN: Tensor
    """value of each reward entry, without its weight, float64"""
    logp_S: Tensor
    """under the policy that sampled them"""
    reference_S: Tensor
    """under the reference"""
    value_S: Tensor
    entropy_S: Tensor
    coefficient: float
    """of the pull to the reference, in this iteration"""
    heldout: float | None
    """nats per token of held-out chosen answers under the policy that sampled; None: not looked at"""
    gap: float | None = None
    """nats per token that whoever sampled is off the policy; None: it is the policy"""

    def rows(self, flat_S: Tensor) -> list[Tensor]:
        """A number per token, cut into answers."""
        return list(flat_S.split([len(answer) for answer in self.answers]))

    @property
    def kl_N(self) -> Tensor:
        """Log-ratio to the reference, summed over each answer."""
        return torch.stack([part.double().sum() for part in self.rows(self.logp_S - self.reference_S)])

    def write(self, path: Path) -> None:
        """Write to `path` so that a reader sees all of it or nothing."""
        tensors = {
            "prompt_N": torch.tensor(self.prompts),
            "length_N": torch.tensor([len(answer) for answer in self.answers]),
            "token_S": torch.tensor([token for answer in self.answers for token in answer]),
            **{name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        more = {"coefficient": self.coefficient, "heldout": self.heldout, **({} if self.gap is None else {"gap": self.gap})}
        save_file(tensors, draft, {"rollout": json.dumps(more)})
        sync(draft)
        draft.replace(path)
        sync(path.parent)

    @classmethod
    def read(cls, path: Path) -> "Rollout":
        """The rollout that `path` holds."""
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            more = json.loads(file.metadata()["rollout"])
        tokens = held.pop("token_S").split(held.pop("length_N").tolist())
        return cls(prompts=held.pop("prompt_N").tolist(), answers=[part.tolist() for part in tokens], **held, **more)


def rollout_path(work: Path, iteration: int) -> Path:
    """Where the rollout of an iteration lies."""
    return work / ROLLOUTS / f"{iteration:06}.safetensors"


def forget_rollouts(work: Path, keep: range) -> None:
    """Delete the rollouts of all other iterations, which weights made that are gone, and what a kill left half written."""
    for path in sorted((work / ROLLOUTS).glob("*")):
        if not (path.stem.isdigit() and int(path.stem) in keep):
            path.unlink()
