# pyright: basic
"""GRPO and RLOO on TRL's trainers: what both share.

TRL groups, compares and learns; what is ours is what decides exactness: prompts are encoded as they are in use, answers are
sampled with draws of their own, all rewards are one number, and the reference is the very model with the weights it started from.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from math import ceil, fsum
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import TrainerCallback

from tasks import estimate
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import AlignError, DataError, GateError
from tasks.group import GroupSpec
from tasks.memory import Work
from tasks.rewarding import check_references, wants_model
from tasks.tables import practice_prompts
from tasks.training.adapters import Start, start
from tasks.training.data import Encoded
from tasks.training.dpo import adapter_copy, torch_float32
from tasks.training.engines import engine
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, row_metrics
from tasks.training.generate import ROWS
from tasks.training.practice import GAP, clearance_of
from tasks.training.preflight import Batches, plan_batches, shape_of
from tasks.training.rewarder import Rewarder, missing
from tasks.training.roles import OwnReward
from tasks.training.rollout import Ask, Engine, asked_order, room_for
from tasks.training.vision import encoder_for

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
"""largest KL per token, in nats, that counts as 0 at the first step, where every log-ratio is 0: half its square"""
_NAMES = {
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "answer_tokens",
    "completions/clipped_ratio": "unfinished",
}
"""what TRL calls the numbers of the curve"""


class _Start:
    """Stands for the reference: the model with the weights it started from."""


class GroupTrainer(Quiet):
    """Mixed into TRL's trainers, before them."""

    state: Any
    accelerator: Any
    _metrics: Any
    weighed: ClassVar[tuple[str, ...]]
    """numbers that TRL gives as means over a micro-batch's tokens, and then weighs the micro-batches alike"""

    def practise(self, spec: GroupSpec, run: Run, rewarder: Rewarder, writer: Engine) -> None:
        """Take what a run needs beside TRL's arguments, and the weights of the reference."""
        self._spec, self._run, self._rewarder, self._writer = spec, run, rewarder, writer
        self._numbers: list[int] = []
        self._tokens: list[float] = []
        self._learned = [p for p in self.model.parameters() if p.requires_grad]
        self.beta = spec.beta
        if spec.beta:
            self._start = [p.detach().clone() for p in self._learned]
            self.ref_model = _Start()
        self.reward_funcs = [self._reward]
        self.reward_func_names = ["total"]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._numbers = [int(number) for number in prompts]
        return [self._rewarder.rows[number]["prompt_ids"] for number in self._numbers], None, {}

    def _answers(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """An answer to each; its draws belong to the iteration and its place in it, whatever process writes it."""
        iteration = self.state.global_step // steps_per_iteration(self._spec)
        first = self.accelerator.process_index * len(prompts)
        ids = [self._rewarder.rows[number]["id"] for number in self._numbers]
        asked = [Ask(prompt, f"{iteration}\n{ids[i]}\n{first + i}") for i, prompt in enumerate(prompts)]

        def progress(done: int, of: int) -> None:
            if self.accelerator.is_main_process:
                self._run.progress(Progress(done, of, {"rollout": float(iteration)}))

        self.model.eval()
        with self.accelerator.autocast():
            found = self._writer.answers(asked, progress)
        self.model.train()
        if self._writer.gap is not None:
            self._metrics["train"].setdefault(GAP, []).append(self._writer.gap)
        return found

    def _reward(self, prompts: list[str], completion_ids: list[list[int]], log_metric: Any, **_: object) -> list[float]:  # noqa: ANN401
        rewarded = self._rewarder([int(number) for number in prompts], completion_ids)
        for name, column in rewarded.entries.items():
            log_metric(name, fsum(column) / len(column))
        return rewarded.total

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not isinstance(model, _Start):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        with self._as_it_started():
            return super()._get_per_token_logps_and_entropies(self.model, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @contextmanager
    def _as_it_started(self) -> Iterator[None]:
        """Exact for every method that leaves the model what it is when it is set up: whatever is learned is in these weights."""
        now = [p.data for p in self._learned]
        for parameter, then in zip(self._learned, self._start, strict=True):
            parameter.data = then.to(parameter.device)
        try:
            yield
        finally:
            for parameter, data in zip(self._learned, now, strict=True):
                parameter.data = data

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:  # noqa: ANN401
        self._tokens.append(float(self.accelerator.reduce(inputs["completion_mask"].sum().float(), "sum")))
        return super()._compute_loss(model, inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Means over all tokens of a step, and the names that the numbers have for every algorithm."""
        metrics = self._metrics["train"]
        for name in self.weighed:
            if found := metrics.get(name):
                metrics[name] = [fsum(v * n for v, n in zip(found, self._tokens, strict=True)) / fsum(self._tokens)]
        self._tokens.clear()
        for theirs, ours in _NAMES.items():
            if theirs in metrics:
                metrics[ours] = metrics.pop(theirs)
        if "unfinished" in metrics:
            metrics["finished"] = [1 - value for value in metrics.pop("unfinished")]
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class _Bounds(TrainerCallback):
    """At step 1 the policy must be the reference; later it must not be too far from it."""

    def __init__(self, spec: GroupSpec, tolerance: float) -> None:
        self._spec, self._tolerance = spec, tolerance
        self.first: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: object) -> None:  # noqa: ANN401
        """After each step that says how far it is."""
        if not logs or "kl" not in logs:
            return
        kl, stage = logs["kl"], self._spec.stage
        if state.global_step == 1:
            self.first = kl
            if not abs(kl) <= self._tolerance:
                raise AlignError(
                    f"{stage.upper()} did not start at its reference: KL {kl:.4g} nats per token at the first step, where 0 (up "
                    f"to {self._tolerance:g}) is due; the method changes the policy when it is set up, so merge the policy first"
                )
        if self._spec.stop_kl is not None and not kl <= self._spec.stop_kl:
            raise GateError(
                f"{stage}: step {state.global_step}: the policy is {kl:.3g} nats per token from the SFT policy, more than "
                f"stop_kl {self._spec.stop_kl:g}; raise beta, or lower learning_rate"
            )


def steps_per_iteration(spec: GroupSpec) -> int:
    """Optimiser steps between two samplings."""
    return spec.updates * spec.rollout_batch // spec.global_batch


def train(make: Any, config: Any, spec: GroupSpec, inputs: Inputs, out: Path, run: Run, **more: object) -> Metrics:  # noqa: ANN401
    """Train `inputs["policy"]` on rewards of its own answers to `inputs["prompts"]`.

    make, config: the trainer's class and TRL's class of its arguments.  more: arguments of this algorithm alone.
    """
    run = _at_ends(able(spec, run), spec)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["prompts"], model=begin.model)
    given = practice_prompts(inputs["prompts"])
    encoded = room_for(encoder, given, max_length=spec.max_length, new_tokens=spec.max_new_tokens)
    encoded.check(spec.dropped_budget, "prompts")
    check_references(spec.rewards, {row["id"]: row["reference"] for row in encoded.rows})
    rewarder = Rewarder(spec, encoder, encoded.rows)
    if wants_model(spec.rewards):
        missing(spec, inputs)
        rewarder = replace(rewarder, model=OwnReward(inputs["reward_model"], run), **clearance_of(inputs["clearance"])._asdict())
    batches = _batches(spec, begin, rewarder, run)
    cheap_head(run)
    asked = asked_order(len(encoded.rows), iterations=spec.iterations, batch=spec.rollout_batch // spec.samples, seed=spec.seed)
    with adapter_copy(begin.model):
        trainer = make(
            model=begin.model,
            reward_funcs=_nothing,
            args=arguments(
                config, spec, run, batches, num_generations=spec.samples, num_iterations=spec.updates,
                steps_per_generation=spec.rollout_batch // (batches.micro_batch * batches.processes),
                max_completion_length=spec.max_new_tokens, temperature=spec.temperature, epsilon=spec.clip, beta=0.0,
                shuffle_dataset=False, disable_dropout=True, remove_unused_columns=False, **more,
            ),
            train_dataset=Dataset.from_dict({"prompt": [str(number) for numbers in asked for number in numbers]}),
            processing_class=encoder.tokenizer,
        )  # fmt: skip
    trainer.eos_token_ids = sorted(encoder.stops)
    process = trainer.accelerator.process_index
    writer = engine(spec, begin, encoder, run, silent=0, rows=ROWS[begin.loaded.device.type], process=process)
    trainer.practise(spec, run, replace(rewarder, batch=4 * batches.micro_batch), writer)
    width = torch.float32 if torch_float32(begin.model) and not trainer.args.bf16 else torch.bfloat16
    bounds = _Bounds(spec, TOLERANCE[width])
    trainer.add_callback(bounds)
    with closing(writer):
        metrics: dict[str, Any] = fit(trainer, begin, batches, out, run, tokens=0)
    return {**_row_metrics(encoded), **metrics, **_outcome(trainer, metrics, batches), "first_step_kl": bounds.first}


def _nothing(**_: object) -> list[float]:
    """What TRL is given until `practise` names the reward."""
    raise AlignError("a reward was asked for before there was one")


def _at_ends(run: Run, spec: GroupSpec) -> Run:
    """`run` with checkpoints between iterations alone: answers that are half learned could not be sampled again."""
    steps = steps_per_iteration(spec)
    every = ceil(run.execution.checkpoint_every / steps) * steps
    return replace(run, execution=run.execution.model_copy(update={"checkpoint_every": every}))


def _batches(spec: GroupSpec, begin: Start, rewarder: Rewarder, run: Run) -> Batches:
    """How a batch is cut.  Raises DataError for a prompt that exceeds the model's positions."""
    longest = max(len(row["prompt_ids"]) for row in rewarder.rows) + spec.max_new_tokens
    room = getattr(begin.model.config.get_text_config(), "max_position_embeddings", None)
    if room and longest > room:
        raise DataError(f"a prompt and its answer may take {longest} tokens, the model has {room} positions; lower max_length")
    shape = shape_of(begin.model)
    reference = sum(p.numel() * p.element_size() for p in begin.model.parameters() if p.requires_grad) if spec.beta else 0
    judge: Any = getattr(rewarder.model, "model", None)
    apart = sum(p.numel() * p.element_size() for p in judge.parameters()) if judge else 0

    def needs(work: Work) -> int:
        return estimate.training(shape, spec.method, spec.stage, work).total + reference + apart

    steps = spec.iterations * steps_per_iteration(spec)
    return plan_batches(spec, run, begin.model, rows=steps * spec.global_batch, longest=longest, texts=1, needs=needs)


def _row_metrics(encoded: Encoded) -> Metrics:
    rows = row_metrics(encoded)
    del rows["rows_truncated"]
    return rows


def _outcome(trainer: Any, metrics: dict[str, Any], batches: Batches) -> Metrics:  # noqa: ANN401
    """What became of the rewards: means of the first and the last tenth of the iterations."""
    history = [row for row in trainer.state.log_history if "reward" in row]
    part = max(1, len(history) // 10)
    tokens = int(trainer.state.num_input_tokens_seen)
    found: Metrics = {
        f"{when}_{name}": fsum(row[name] for row in rows) / len(rows)
        for when, rows in (("first", history[:part]), ("last", history[-part:]))
        for name in ("reward", "answer_tokens", "finished", "kl")
        if all(name in row for row in rows)
    }
    speed = tokens * (1 - metrics["resumed_at_step"] / batches.steps) / metrics["seconds"]
    return {**found, "iterations": len(history), "tokens": tokens, "tokens_per_second": speed}
