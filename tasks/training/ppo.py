# pyright: basic
"""PPO on transformers' Trainer: a step learns from a minibatch of an iteration's answers, which are sampled when it first comes.

All state beside weights and optimiser is in the curve: an iteration's pull follows from the row before it; what was sampled lies
on disk.  So a run that was killed anywhere goes on from its last checkpoint as if nothing had been.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from tasks import estimate
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import AlignError, DataError, GateError, SpecError
from tasks.core.files import write_json
from tasks.ppo import PpoSpec
from tasks.rewarding import ModelReward, check_references, wants_model
from tasks.tables import practice_prompts
from tasks.training.adapters import Start, start
from tasks.training.checkpoints import newest_complete
from tasks.training.data import encode_pairs, read_rows
from tasks.training.engines import engine
from tasks.training.fit import CURVE, Quiet, able, arguments, fit, numbers, row_metrics
from tasks.training.methods.table import BUILDERS
from tasks.training.objective import next_coefficient, policy_loss, value_loss
from tasks.training.practice import HELDOUT, Iteration, Practice, at_end, clearance_of
from tasks.training.preflight import Batches, plan_batches, shape_of
from tasks.training.roles import OwnReward, Roles, SharedReward, check_roles, reward_model
from tasks.training.rollout import asked_order, forget_rollouts, room_for
from tasks.training.stops import check_distance, check_fall, check_finite

VALUE_RATE = 5.0
"""learning rate of the value model over that of the policy, where the spec leaves it open"""
TOLERANCE = {"cpu": 1e-3, "cuda": 0.1}
"""largest distance from 1 of a ratio that counts as 1, before anything was learned: in float32 and in bfloat16"""


class _Ppo(Quiet, Trainer):
    """Trainer whose rows are (iteration, epoch, place) and whose step is PPO's."""

    def __init__(self, practice: Practice, **more: Any) -> None:  # noqa: ANN401
        self._practice, self._spec, self._run = practice, practice.spec, practice.run
        self._now: Iteration | None = None
        self._sums: dict[str, float] = {}
        self._row: dict[str, float] = {}
        super().__init__(model=practice.roles, **more)

    def history(self) -> list[dict[str, float]]:
        """The last row of each iteration so far."""
        rows = {row["iteration"]: row for row in self.state.log_history if "iteration" in row}
        return [rows[number] for number in sorted(rows)]

    def _iteration(self, number: int) -> Iteration:
        """The iteration that is learned from now; sampled, or taken up again, when its number changes."""
        if self._now is None or self._now.number != number:
            before = self.history()
            again = before.pop() if before and before[-1]["iteration"] == number else None
            now = self._practice.iteration(number, self._coefficient(before))
            stop = self._spec.stop
            self._guarded(now.facts, lambda: check_distance(stop, now.facts))
            self._guarded(now.facts, lambda: check_fall(stop, [*before, now.facts], now.facts.get(HELDOUT)))
            if again:  # in the middle of it
                now.stopped = bool(again["skipped"])
                now.facts["ratio_start"] = again["ratio_start"]
            self._now = now
        return self._now

    def _coefficient(self, before: list[dict[str, float]]) -> float:
        kl = self._spec.kl
        if not before:
            return kl.coefficient
        last = before[-1]
        return next_coefficient(
            last["kl_coefficient"], last["kl"], target=kl.target, horizon=kl.horizon, answers=self._spec.rollout_batch
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ANN401
        """Add the gradient of a micro-batch to that of its minibatch; its share of the minibatch's loss."""
        spec, roles = self._spec, self._practice.roles
        (iteration, epoch), places = inputs["of"], inputs["places"]
        now = self._iteration(iteration)
        if now.stopped:
            return torch.zeros((), device=self.args.device)
        first = places[0] // spec.global_batch * spec.global_batch
        tokens = now.tokens(epoch, first, spec.global_batch)
        batch = [now.order[epoch][place] for place in places]
        said = self._practice.said([now.prompts[i] for i in batch], [now.rollout.answers[i] for i in batch])
        logp, value, advantage, wanted = (
            at_end([rows[i] for i in batch], roles.device) for rows in (now.logps, now.values, now.advantages, now.returns)
        )
        with roles.policy(learns=True):
            found_BR, entropy_BR = roles.log_probs(
                said, temperature=spec.temperature, silent=spec.min_new_tokens, entropy=spec.entropy > 0
            )
            moved = policy_loss(found_BR, logp, advantage, said.answer_BR, clip=spec.clip, tokens=tokens)
            loss = moved.loss - spec.entropy * entropy_BR.sum() / tokens
            loss.backward()
        with roles.value(learns=True):
            error = value_loss(roles.values(said), value, wanted, said.answer_BR, clip=spec.value_clip, tokens=tokens)
            error.backward()
        if epoch == 0 and first == 0:
            self._starts_at_one(now, float(moved.off))
        more = {"clip_fraction": moved.clipped / tokens, "approx_kl": moved.kl / tokens}
        for name, part in {"policy_loss": moved.loss, "value_loss": error, **more}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(part.detach())
        return (loss + error).detach()

    def _starts_at_one(self, now: Iteration, off: float) -> None:
        now.facts["ratio_start"] = max(off, now.facts.get("ratio_start", 0.0))
        if not off <= (most := TOLERANCE[self._practice.roles.device.type]):
            raise AlignError(
                f"PPO did not start where it sampled: a ratio of iteration {now.number} is {off:.3g} off 1 before anything was "
                f"learned, where 0 (up to {most:g}) is due; the policy answers otherwise in training than in use"
            )

    def _clip_grad_norm(self, model: Any) -> float:  # noqa: ANN401
        """Clip policy and value model apart, at the end of a minibatch; or leave its step out, if the policy has moved enough."""
        now, sums = self._now, self._sums
        assert now is not None
        self._sums = {}
        most = self._spec.early_stop
        if not now.stopped and most is not None and sums["approx_kl"] > most:
            now.stopped = True
            model.zero_grad(set_to_none=True)  # AdamW passes over weights without a gradient
        names = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")
        step = {**dict.fromkeys(names, 0.0), **sums, "value_grad_norm": 0.0, "skipped": float(now.stopped)}
        self._row = {**now.facts, **step}
        if now.stopped:
            return 0.0
        policy, value = self._practice.roles.trained()
        norms = [float(torch.nn.utils.clip_grad_norm_(group, self._spec.max_grad_norm)) for group in (policy, value)]
        self._row["value_grad_norm"] = norms[1]
        checked = {"policy_loss": sums["policy_loss"], "value_loss": sums["value_loss"]}
        gradients = {"policy_gradient_norm": norms[0], "value_gradient_norm": norms[1]}
        self._guarded(self._row, lambda: check_finite(now.number, **checked, **gradients))
        return norms[0]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:  # noqa: ANN401
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what PPO knows of a step to its row of the curve."""
        if "loss" in logs:
            logs |= self._row
        super().log(logs, start_time)
        if "loss" in logs and self._now and self.state.global_step % self.steps_per_iteration == 0:
            self.keep_curve()

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps."""
        return self._spec.ppo_epochs * self._spec.rollout_batch // self._spec.global_batch

    def keep_curve(self, *more: Mapping[str, float]) -> None:
        """Keep the curve so far in the work folder, and rows that have not become part of it."""
        rows: list[Any] = [row for row in self.state.log_history if "loss" in row]
        rows += [{"step": self.state.global_step, **row} for row in more]
        write_json(self._run.work / CURVE, [*map(numbers, rows)])

    def _guarded(self, row: Mapping[str, float], check: Any) -> None:  # noqa: ANN401
        """Run `check`; if it ends the run, keep the curve up to the numbers that did."""
        try:
            check()
        except GateError:
            shown = numbers(row)
            self._run.progress(Progress(self.state.global_step, self.state.max_steps, shown))
            self.keep_curve(shown)
            raise


def run(spec: PpoSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on rewards of its own answers to `inputs["prompts"]`."""
    if run.execution.processes > 1:
        raise SpecError("ppo: runs in one process; set execution.processes to 1 for this plan, or use dpo")
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    check_roles(begin)
    roles = Roles(begin, checkpointing=run.execution.gradient_checkpointing)
    encoded = room_for(
        roles.encoder, practice_prompts(inputs["prompts"]), max_length=spec.max_length, new_tokens=spec.max_new_tokens
    )
    encoded.check(spec.dropped_budget, "prompts")
    check_references(spec.rewards, {row["id"]: row["reference"] for row in encoded.rows})
    reward, clearance = _judged(spec, inputs, roles, begin, run)
    set_seed(spec.seed)
    shared = reward if isinstance(reward, SharedReward) else None
    weight = sum(entry.weight for entry in spec.rewards if isinstance(entry, ModelReward))
    run.log(f"value model: starts as {(how := roles.add_value(shared, clearance, weight))}")
    batches = _batches(spec, begin, reward, encoded.rows, run)
    rows = estimate.ROLLOUT_ROWS * batches.micro_batch
    writer = engine(spec, begin, roles.encoder, run, silent=spec.min_new_tokens, rows=rows)
    asked = asked_order(len(encoded.rows), iterations=spec.iterations, batch=spec.rollout_batch, seed=spec.seed)
    heldout = _heldout(spec, inputs, roles, run)
    practice = Practice(spec, run, roles, writer, encoded.rows, asked, batches.micro_batch, reward, clearance, heldout)
    trainer = _trainer(practice, begin, batches)
    _forget(trainer, run, batches)
    with closing(writer):
        metrics: dict[str, Any] = fit(trainer, begin, batches, out, run, tokens=0)
    outcome = _outcome(trainer, practice)
    speed = {"tokens_per_second": outcome["tokens"] * (1 - metrics["resumed_at_step"] / batches.steps) / metrics["seconds"]}
    return {**row_metrics(encoded), **metrics, **outcome, **speed, "value_start": how}


def _judged(spec: PpoSpec, inputs: Inputs, roles: Roles, begin: Start, run: Run) -> Any:  # noqa: ANN401
    """The reward model and how its scores are normalised; None twice where no reward asks for it."""
    if not wants_model(spec.rewards):
        return None, None
    if missing := [name for name in ("reward_model", "clearance") if name not in inputs]:
        raise SpecError(f"ppo: rewards name the reward model, and the input {missing[0]} is missing; give it, or use rules alone")
    return reward_model(roles, begin, inputs["reward_model"], run), clearance_of(inputs["clearance"])


def _batches(spec: PpoSpec, begin: Start, reward: Any, rows: list[dict[str, Any]], run: Run) -> Batches:  # noqa: ANN401
    """How a minibatch is cut.  Raises DataError for a prompt that exceeds the model's positions."""
    longest = max(len(row["prompt_ids"]) for row in rows) + spec.max_new_tokens
    room = getattr(begin.model.config.get_text_config(), "max_position_embeddings", None)
    if room and longest > room:
        raise DataError(f"a prompt and its answer may take {longest} tokens, the model has {room} positions; lower max_length")
    judge: int | None = None if isinstance(reward, SharedReward) else 0
    if isinstance(reward, OwnReward):
        judge = sum(p.numel() * p.element_size() for p in reward.model.parameters())
    needs = partial(estimate.ppo, shape_of(begin.model), spec.method, new=spec.max_new_tokens, judge=judge)
    steps = spec.iterations * spec.ppo_epochs * spec.rollout_batch
    return plan_batches(spec, run, begin.model, rows=steps, longest=longest, texts=1, needs=lambda work: needs(work).total)


def _heldout(spec: PpoSpec, inputs: Inputs, roles: Roles, run: Run) -> list[dict[str, Any]]:
    """Held-out pairs for the look at whether the policy gets worse; none where it is not asked for."""
    if spec.stop.fall is None or "data" not in inputs:
        return []
    rows = read_rows(inputs["data"], "heldout", spec.stop.pairs)
    found = encode_pairs(roles.encoder, rows, max_length=spec.max_length).rows
    run.log(f"{len(found)} held-out pairs are looked at every {spec.stop.every} iterations")
    return found


def _trainer(practice: Practice, begin: Start, batches: Batches) -> _Ppo:
    spec, run = practice.spec, practice.run
    plain = replace(run, execution=run.execution.model_copy(update={"gradient_checkpointing": False}))  # `Roles` sees to it
    args = arguments(TrainingArguments, spec, plain, batches, remove_unused_columns=False)
    rows = [
        {"iteration": iteration, "epoch": epoch, "place": place}
        for iteration in range(spec.iterations)
        for epoch in range(spec.ppo_epochs)
        for place in range(spec.rollout_batch)
    ]
    return _Ppo(
        practice,
        args=args,
        train_dataset=Dataset.from_list(rows),
        data_collator=_collated,
        optimizers=(_optimizer(practice.roles, begin, spec, args), None),
    )


def _collated(rows: list[dict[str, int]]) -> dict[str, Any]:
    return {"of": (rows[0]["iteration"], rows[0]["epoch"]), "places": [row["place"] for row in rows]}


def _optimizer(roles: Roles, begin: Start, spec: PpoSpec, args: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """AdamW with the groups that the method asks for, once for the policy's adapter and once for the value model's."""
    groups: list[dict[str, Any]] = []
    rates = (spec.learning_rate, spec.value_learning_rate or VALUE_RATE * spec.learning_rate)
    more = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon, "weight_decay": spec.weight_decay}
    asked = SimpleNamespace(
        weight_decay=spec.weight_decay, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2, adam_epsilon=args.adam_epsilon
    )
    for adapter, rate in zip(roles.adapters(), rates, strict=True):
        asked.learning_rate = rate
        with roles.alone(adapter):
            own = BUILDERS[begin.method.name].optimizer(roles.model, begin.method, asked)
            weights = [p for p in roles.model.parameters() if p.requires_grad]
        plain = [{"params": weights, "lr": rate, **more}]
        groups += [{**group} for group in own.param_groups if group["params"]] if own else plain
    groups.append({"params": list(roles.value_head.parameters()), "lr": rates[1], **more, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


def _forget(trainer: _Ppo, run: Run, batches: Batches) -> None:
    """Keep the rollouts that the newest checkpoint and its predecessor may need, and none that weights made which are gone."""
    checkpoint = newest_complete(Path(trainer.args.output_dir), batches.processes)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    forget_rollouts(run.work, range(done // trainer.steps_per_iteration + 1))


def _outcome(trainer: _Ppo, practice: Practice) -> dict[str, Any]:
    """The first and last iteration beside each other; a last look at held-out pairs, which may end the run."""
    rows = trainer.history()
    ends = {"first": rows[0], "last": rows[-1]}
    metrics: dict[str, Any] = {
        f"{end}_{name}": row[name] for end, row in ends.items() for name in ("reward", "kl", "answer_tokens")
    }
    if practice.heldout:
        now = practice.heldout_logp()
        trainer._guarded({**rows[-1], HELDOUT: now}, lambda: check_fall(practice.spec.stop, rows, now))
        metrics |= {"first_heldout_logp": rows[0].get(HELDOUT), "last_heldout_logp": now}
    tokens = round(sum(row["answer_tokens"] * row["answers"] for row in rows))
    return {**metrics, "iterations": len(rows), "answers": round(sum(row["answers"] for row in rows)), "tokens": tokens}
