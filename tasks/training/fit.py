# pyright: basic
"""What SFT, reward and DPO training share: trainer arguments, resuming, progress, checks of the outcome, metrics.

Data arrive in their final order (`data.schedule`) and are read in sequence, so a result cannot depend on how a batch is cut.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback

from tasks.core.contract import Metrics, Progress, Run
from tasks.core.errors import AlignError, SpecError
from tasks.core.files import write_json
from tasks.core.launch import resident
from tasks.memory import HEAD_TOKENS
from tasks.methods import METHODS, PrefixTuning, PTuningV2
from tasks.train import TrainSpec
from tasks.training.adapters import Start, trainable_share, write_payload
from tasks.training.checkpoints import TRAINED, newest_complete
from tasks.training.data import Encoded
from tasks.training.methods.table import BUILDERS
from tasks.training.models import torch_device
from tasks.training.preflight import Batches

CURVE = "training.json"
_CURVE_FIELDS = (
    "loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy", "accuracy", "margin", "mean_reward",
    "nll", "odds_ratio", "reward", "kl", "clip_fraction", "answer_tokens", "finished",
    "iteration", "answers", "reward_std", "kl_coefficient", "policy_loss", "value_loss", "value_grad_norm",
    "explained_variance", "approx_kl", "ratio_start", "heldout_logp", "sampler_gap", "skipped",
)  # fmt: skip
REWARD_OF = "reward_of/"
"""begins the name of one reward's mean, among several"""


class Quiet:
    """Mixed into TRL's trainers: no model card, nothing sent anywhere; a checkpoint holds what is trained under its own name.

    Trainer's own would not do: a soft prompt's holds what its network yields and not the network, and a mixture of experts'
    is written under names that reading it back passes over in silence.
    """

    model: Any
    args: Any

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Leave out the card that TRL writes into each checkpoint."""

    def _send_telemetry(self) -> None:
        pass

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401
        trained = {name: p.detach().cpu().contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        if saved.keys() != trained.keys():
            raise AlignError(f"{resume_from_checkpoint}: {TRAINED} holds other weights than are trained; delete the checkpoint")
        for name, parameter in trained.items():
            parameter.data.copy_(saved[name])


class Watch(TrainerCallback):
    """Report progress, and stop at once where the loss is no number."""

    def __init__(self, run: Run, steps: int) -> None:
        """`steps`: how many are planned."""
        self._run, self._steps = run, steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: object) -> None:  # noqa: ANN401
        """After each optimiser step."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise SpecError(
                f"training diverged: loss {logs['loss']}, gradient norm {logs.get('grad_norm')} at step {state.global_step}; "
                "lower learning_rate or max_grad_norm"
            )
        if state.is_world_process_zero:
            values = {name: round(float(value), 6) for name, value in logs.items() if name in (*_CURVE_FIELDS, "rewards/margins")}
            self._run.progress(Progress(state.global_step, self._steps, values))


def able(spec: TrainSpec, run: Run) -> Run:
    """`run` without gradient checkpointing where the method cannot have it: more memory, the same result."""
    if METHODS[spec.method.name].checkpointing or not run.execution.gradient_checkpointing:
        return run
    run.log(f"method {spec.method.name} cannot recompute activations, so gradient checkpointing is left off")
    return replace(run, execution=run.execution.model_copy(update={"gradient_checkpointing": False}))


def arguments(config: Callable[..., Any], spec: TrainSpec, run: Run, batches: Batches, **more: object) -> Any:  # noqa: ANN401
    """TRL's arguments for `spec`: AdamW, one log a step, data in the order given."""
    cpu = torch_device(run).type == "cpu"
    if isinstance(spec.method, PrefixTuning | PTuningV2) and hasattr(config, "router_aux_loss_coef"):
        # The mask counts a prefix, the router never sees it, and transformers' balance of experts fails on the difference.
        more["router_aux_loss_coef"] = 0.0
    return config(
        output_dir=str(run.work / "checkpoints"), max_steps=batches.steps, per_device_train_batch_size=batches.micro_batch,
        gradient_accumulation_steps=batches.accumulation, train_sampling_strategy="sequential", seed=spec.seed,
        data_seed=spec.seed, learning_rate=spec.learning_rate, lr_scheduler_type=spec.schedule,
        warmup_steps=ceil(spec.warmup * batches.steps), weight_decay=spec.weight_decay, max_grad_norm=spec.max_grad_norm,
        optim="adamw_torch", use_cpu=cpu, bf16=not cpu, fp16=False, gradient_checkpointing=run.execution.gradient_checkpointing,
        save_strategy="steps", save_steps=run.execution.checkpoint_every, save_total_limit=2, logging_steps=1,
        logging_first_step=True, logging_nan_inf_filter=False, disable_tqdm=True, report_to="none", dataloader_num_workers=0,
        dataloader_pin_memory=not cpu, eval_strategy="no", **more,
    )  # fmt: skip


def cheap_head(run: Run) -> None:
    """On a CPU, let TRL's language-model head see answer tokens only, and few at a time.

    Its default tile holds 4096 tokens x 32768 words, and off Triton it also scores masked positions: twice the memory and up to
    three times the time of a plain head.  Both knobs are private names, so they are checked for.
    """
    if torch_device(run).type != "cpu":
        return
    for module, name in ((trl.kernels.chunked_logprob, "TOKEN_CHUNK_SIZE"), (trl.trainer.utils, "_use_triton")):
        if not hasattr(module, name):
            raise AlignError(f"{module.__name__} has no {name} any more; adapt cheap_head to this trl {trl.__version__}")
    trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE = HEAD_TOKENS["cpu"]
    trl.trainer.utils._use_triton = lambda device: True  # pyright: ignore[reportPrivateImportUsage]  there: leave masked ones out


@contextmanager
def full_precision(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Undo what TRL does to QLoRA adapters on construction: rounding them to bfloat16, also those of the parent policy."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name]


def fit(trainer: Any, begin: Start, batches: Batches, out: Path, run: Run, tokens: int) -> Metrics:  # noqa: ANN401
    """Train to the last planned step, from the newest complete checkpoint if there is one; write the payload; return metrics.

    `tokens`: of the whole schedule, padding not counted.
    """
    if trainer.accelerator.num_processes != batches.processes:
        raise AlignError(f"{batches.processes} processes were asked for, accelerate uses {trainer.accelerator.num_processes}")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(run, batches.steps))
    checkpoint = newest_complete(Path(trainer.args.output_dir), batches.processes)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    trainable, share = trainable_share(begin.model)
    run.log(f"training {trainable:,} weights ({share:.2%}), {batches.steps} steps" + (f", resumed at {done}" if done else ""))
    trainer.optimizer = trainer.optimizer or BUILDERS[begin.method.name].optimizer(begin.model, begin.method, trainer.args)
    started, busy = time.monotonic(), time.process_time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds, busy = time.monotonic() - started, time.process_time() - busy
    curve = _curve(trainer.state.log_history)
    _check(trainer, batches.steps, curve)
    if trainer.is_world_process_zero():
        write_payload(begin, out, begin.model)
        write_json(out / CURVE, curve)
    return {
        "method": begin.record.chain[-1].method,
        "start": begin.how,
        "steps": batches.steps,
        "resumed_at_step": done,
        "first_loss": curve[0]["loss"],
        "last_loss": curve[-1]["loss"],
        "tail_loss": _mean([row["loss"] for row in curve[-max(1, len(curve) // 10) :]]),
        "trainable_parameters": trainable,
        "trainable_share": share,
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": busy,
        "tokens_per_second": tokens * (batches.steps - done) / batches.steps / seconds,
        "micro_batch": batches.micro_batch,
        "accumulation": batches.accumulation,
        "processes": batches.processes,
        "memory_estimate_bytes": batches.estimate,
        "peak_rss_bytes": resident("VmHWM"),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch_device(run).type == "cuda" else None,
    }


def row_metrics(encoded: Encoded) -> Metrics:
    """What became of the rows."""
    return {
        "rows": encoded.total,
        "rows_trained": len(encoded.rows),
        "rows_truncated": encoded.truncated,
        "rows_dropped": dict(sorted(encoded.dropped.items())),
    }


def _curve(history: Sequence[dict[str, float]]) -> list[Any]:
    rows = [row for row in history if "loss" in row]
    kept = (*_CURVE_FIELDS, "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    named = [[*kept, *sorted(name for name in row if name.startswith(REWARD_OF))] for row in rows]
    curve = [{"step": row["step"], **{n: row[n] for n in names if n in row}} for names, row in zip(named, rows, strict=True)]
    return [*map(numbers, curve)]


def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` of a curve without what is infinite or NaN, such as the mean of a rule that had nothing to say in a step."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _check(trainer: Any, steps: int, curve: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401
    if trainer.state.global_step != steps or len(curve) != steps:
        raise AlignError(f"{trainer.state.global_step} steps ran and {len(curve)} were logged instead of {steps}")
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise SpecError(f"training diverged: {name} is not finite after the last step; lower learning_rate")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
