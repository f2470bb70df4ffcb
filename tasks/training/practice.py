# pyright: basic
"""An iteration of PPO up to its first update: answers, rewards, log-probabilities, values, advantages.

What was sampled is kept on disk; everything else follows from it, so an iteration that is taken up again is the same.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks import estimate
from tasks.core.contract import Progress, Run
from tasks.core.errors import AlignError, DataError
from tasks.ppo import PpoSpec
from tasks.rewarding import wants_model
from tasks.training.lean import give_back
from tasks.training.objective import advantages, explained_variance, token_rewards, whitened
from tasks.training.rewarder import Rewarder
from tasks.training.roles import Clearance, OwnReward, Roles, Said, SharedReward
from tasks.training.rollout import Engine, Rollout, asks, rollout_path
from tasks.training.stops import check_finite

HELDOUT, GAP = "heldout_logp", "sampler_gap"
"""numbers of the curve that not every run has"""


@dataclass
class Iteration:
    """What the updates of an iteration need.  Lists have a tensor per answer, of its tokens."""

    number: int
    rollout: Rollout
    prompts: list[list[int]]
    order: list[list[int]]
    """answers in the order of each epoch"""
    logps: list[Tensor]
    values: list[Tensor]
    advantages: list[Tensor]
    returns: list[Tensor]
    facts: dict[str, float]
    """for the curve"""
    stopped: bool = False
    """the rest of its updates is left out"""

    def tokens(self, epoch: int, start: int, size: int) -> int:
        """Tokens of the answers of a minibatch."""
        return sum(len(self.rollout.answers[i]) for i in self.order[epoch][start : start + size])


@dataclass
class Practice:
    """What makes iterations."""

    spec: PpoSpec
    run: Run
    roles: Roles
    engine: Engine
    rows: Sequence[dict[str, Any]]
    """prompts, tokenised"""
    asked: Sequence[Sequence[int]]
    """numbers of the prompts of each iteration"""
    micro: int
    """answers at once in an update"""
    reward: SharedReward | OwnReward | None = None
    clearance: Clearance | None = None
    heldout: Sequence[dict[str, Any]] = field(default_factory=list)
    """held-out pairs, tokenised"""

    @property
    def wide(self) -> int:
        """Answers at once where nothing is learned; as few as in an update where memory is short enough to recompute."""
        return self.micro * (1 if self.run.execution.gradient_checkpointing else estimate.ROLLOUT_ROWS)

    def iteration(self, number: int, coefficient: float) -> Iteration:
        """Iteration `number`: taken up from disk, or sampled with the policy as it is now."""
        path = rollout_path(self.run.work, number)
        if not path.is_file():
            self._sample(number, coefficient).write(path)
        return self._prepared(number, Rollout.read(path))

    def _sample(self, number: int, coefficient: float) -> Rollout:
        asked = asks(self.rows, self.asked[number], number)

        def progress(done: int, of: int) -> None:
            self.run.progress(Progress(done, of, {"rollout": float(number)}))

        give_back(self.roles.device)  # what updates left must not lie under what sampling needs, nor the other way round
        with torch.no_grad():
            with self.roles.policy():
                answers = self.engine.answers(asked, progress)
            score, entries, finished = self._rewarded(self.asked[number], answers)
            prompts = [list(ask.prompt) for ask in asked]
            due = self.heldout and number % self.spec.stop.every == 0
            heldout = self.heldout_logp() if due else None
            told = self._told(prompts, answers, self._order(number, 0, prompts, answers))
        give_back(self.roles.device)
        return Rollout(
            prompts=list(self.asked[number]), answers=answers, finished_N=finished, score_N=score, entry_EN=entries,
            coefficient=coefficient, heldout=heldout, gap=self.engine.gap, **told,
        )  # fmt: skip

    @property
    def _rewarder(self) -> Rewarder:
        if wants_model(self.spec.rewards) and (self.reward is None or self.clearance is None):
            raise AlignError("ppo: a reward by the reward model, and neither it nor a clearance is there")
        scale = self.clearance._asdict() if self.clearance else {}
        return Rewarder(self.spec, self.roles.encoder, self.rows, self.reward, **scale, batch=4 * self.micro)

    def _rewarded(self, numbers: Sequence[int], answers: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Total, value of each entry, and whether it ended by itself, of each answer."""
        found = self._rewarder(numbers, answers)
        finished_N = torch.tensor([answer.finished for answer in found.answers])
        wide = torch.float64
        return torch.tensor(found.total, dtype=wide), torch.tensor([*found.entries.values()], dtype=wide), finished_N

    def _told(self, prompts: list[list[int]], answers: list[list[int]], order: Sequence[int]) -> dict[str, Tensor]:
        """What policy, reference and value model say of each token.

        The policy is asked in the very batches in which the first epoch is learned, so that its ratios start at 1; the others
        in wide ones, which cost less each.
        """
        batches = [order[at : at + self.micro] for at in range(0, len(order), self.micro)]
        by_size = sorted(order, key=lambda i: (-len(prompts[i]) - len(answers[i]), i))
        wide = [by_size[at : at + self.wide] for at in range(0, len(order), self.wide)]
        found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(answers) for name in _TOLD}

        def keep(name: str, batch: Sequence[int], said: Said, numbers_BR: Tensor) -> None:
            for i, numbers_R, there_R in zip(batch, numbers_BR.float().cpu(), said.answer_BR.bool().cpu(), strict=True):
                found[name][i] = numbers_R[there_R]

        how = {"temperature": self.spec.temperature, "silent": self.spec.min_new_tokens}
        with self.roles.policy():
            for batch, said in self._said(prompts, answers, batches):
                logp_BR, entropy_BR = self.roles.log_probs(said, **how, entropy=True)
                keep("logp_S", batch, said, logp_BR)
                keep("entropy_S", batch, said, entropy_BR)
        with self.roles.reference():
            for batch, said in self._said(prompts, answers, wide):
                keep("reference_S", batch, said, self.roles.log_probs(said, **how)[0])
        with self.roles.value():
            for batch, said in self._said(prompts, answers, wide):
                keep("value_S", batch, said, self.roles.values(said))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _said(self, prompts: list[list[int]], answers: list[list[int]], batches: Sequence[Sequence[int]]) -> Any:  # noqa: ANN401
        for batch in batches:
            yield batch, self.said([prompts[i] for i in batch], [answers[i] for i in batch])

    def said(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Said:
        """Answers under their prompts as a batch on the model's device."""
        return Said.of(prompts, answers, self.roles.encoder.pad, self.roles.device)

    @torch.no_grad()
    def heldout_logp(self) -> float:
        """Nats per token of the held-out chosen answers under the policy as it is now."""
        summed, tokens = 0.0, 0
        with self.roles.policy():
            for at in range(0, len(self.heldout), self.micro):
                pairs = self.heldout[at : at + self.micro]
                said = self.said([pair["prompt_ids"] for pair in pairs], [pair["chosen_ids"] for pair in pairs])
                summed += float(self.roles.log_probs(said, temperature=1.0)[0].double().sum())
                tokens += int(said.answer_BR.sum())
        return summed / tokens

    def _order(self, number: int, epoch: int, prompts: list[list[int]], answers: list[list[int]]) -> list[int]:
        """Answers in the order of an epoch: shuffled, then by length within a minibatch, so that little is padded."""
        size = self.spec.global_batch
        shuffled = random.Random(f"{self.spec.seed}/{number}/{epoch}").sample(range(len(answers)), len(answers))
        batches = [shuffled[at : at + size] for at in range(0, len(shuffled), size)]
        return [i for batch in batches for i in sorted(batch, key=lambda i: (-len(prompts[i]) - len(answers[i]), i))]

    def _prepared(self, number: int, rollout: Rollout) -> Iteration:
        """Advantages and returns, the order of the updates, and the numbers of the curve."""
        spec, answers = self.spec, rollout.answers
        logps, values_, references = map(rollout.rows, (rollout.logp_S, rollout.value_S, rollout.reference_S))
        mask_BR = _padded([torch.ones(len(answer)) for answer in answers])
        kl_BR = _padded(logps) - _padded(references)
        reward_BR = token_rewards(rollout.score_N.float(), kl_BR, mask_BR, coefficient=rollout.coefficient)
        value_BR = _padded(values_)
        advantage_BR, return_BR = advantages(reward_BR, value_BR, mask_BR, gamma=spec.gamma, lam=spec.lam)
        better_BR = whitened(advantage_BR, mask_BR) if spec.whiten else advantage_BR
        facts = {
            "iteration": float(number), "answers": float(len(answers)), "reward": float(rollout.score_N.mean()),
            "reward_std": float(rollout.score_N.std()) if len(answers) > 1 else 0.0, "kl": float(rollout.kl_N.mean()),
            "kl_coefficient": rollout.coefficient, "entropy": float(rollout.entropy_S.double().mean()),
            "explained_variance": explained_variance(value_BR, return_BR, mask_BR),
            "answer_tokens": sum(map(len, answers)) / len(answers), "finished": float(rollout.finished_N.double().mean()),
        }  # fmt: skip
        for name, column in zip(self._rewarder.names(), rollout.entry_EN, strict=True):
            facts[name] = float(column.mean())
        check_finite(number, **{name: facts[name] for name in ("reward", "kl", "entropy")}, value=float(value_BR.sum()))
        if rollout.heldout is not None:
            facts[HELDOUT] = rollout.heldout
        if rollout.gap is not None:
            facts[GAP] = rollout.gap
        prompts = [list(self.rows[i]["prompt_ids"]) for i in rollout.prompts]
        order = [self._order(number, epoch, prompts, answers) for epoch in range(spec.ppo_epochs)]
        cut = [len(answer) for answer in answers]
        better, returns = ([row[:size] for row, size in zip(x, cut, strict=True)] for x in (better_BR, return_BR))
        return Iteration(number, rollout, prompts, order, logps, values_, better, returns, facts)


_TOLD = ("logp_S", "reference_S", "value_S", "entropy_S")


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different length side by side, 0 behind them; (B, R)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def at_end(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows of different length as `Said` has them: they end together; (B, R)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side="left").to(device)


def clearance_of(folder: Path) -> Clearance:
    """How scores are normalised, from `folder/clearance.json`.  Raises DataError if it is not there."""
    path = folder / "clearance.json"
    try:
        found = json.loads(path.read_text())
        return Clearance(float(found["mean"]), float(found["std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a clearance ({error}); was the health stage's given as input?") from error
