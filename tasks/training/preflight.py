# pyright: basic
"""Before the first step: does it fit into memory, and how is the global batch cut up?  Execution only, never a result."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tasks import estimate
from tasks.core.contract import Run
from tasks.core.errors import AlignError, MachineError, SpecError
from tasks.core.launch import MICRO_BATCH
from tasks.machine import free_memory, resident
from tasks.memory import Work
from tasks.shapes import Shape, Tensor
from tasks.train import TrainSpec
from tasks.training.batches import soft_tokens

_ADAPTERS = re.compile(r"lora_|ia3_|ln_tuning|bitfit_|bottleneck_|prefix_states|head_tuning_|prompt_encoder|modules_to_save")
"""in the name of a weight that a method added to its base"""


@dataclass(frozen=True)
class Batches:
    """How a global batch is cut: rows = micro_batch x accumulation x processes."""

    steps: int
    micro_batch: int
    accumulation: int
    processes: int
    estimate: int
    """bytes that one process is expected to need"""


def plan_batches(
    spec: TrainSpec,
    run: Run,
    model: Any,  # noqa: ANN401  transformers and PEFT models
    *,
    rows: int,
    longest: int,
    texts: int,
    needs: Callable[[Work], int] | None = None,
) -> Batches:
    """Cut the global batch of `spec` so that it fits; remember the size for a retry after running out of memory.

    `rows`: rows of the whole schedule.  `longest`: tokens of the longest text.  `texts`: texts per row (2 for a pair).  `needs`:
    bytes that one process needs with some work in hand, where it is not one model that is trained on rows.
    Raises SpecError if the processes do not divide the batch, MachineError if not even one row at a time fits.
    """
    processes = run.execution.processes
    if processes != (there := int(os.environ.get("WORLD_SIZE", "1"))):
        raise AlignError(f"execution.processes is {processes}, but {there} were launched")
    if spec.global_batch % processes:
        raise SpecError(f"global_batch {spec.global_batch} cannot be shared by {processes} processes; make it a multiple")
    share = spec.global_batch // processes
    _check_room(model, longest)
    sizes = [n for n in range(min(run.execution.micro_batch or 8, share), 0, -1) if share % n == 0]
    limit = available_bytes(run) // (1 if _on_gpu(run) else processes)
    work = Work(
        device="cuda" if _on_gpu(run) else "cpu", longest=longest, texts=texts, checkpointing=run.execution.gradient_checkpointing
    )
    count = needs or partial(estimate_bytes, model, spec)
    bytes_of = {n: count(replace(work, rows=n, accumulated=n < share)) for n in sizes}
    micro = next((n for n in sizes if bytes_of[n] <= limit), None)
    if micro is None:
        raise MachineError(
            f"one row at a time needs about {bytes_of[1] / 1e9:.1f} GB, {limit / 1e9:.1f} GB are free; shorten max_length, set "
            "execution.gradient_checkpointing, use qlora, or take a larger machine"
        )
    if int(os.environ.get("RANK", "0")) == 0:
        (run.work / MICRO_BATCH).write_text(str(micro))
    run.log(
        f"memory: about {bytes_of[micro] / 1e9:.2f} GB of {limit / 1e9:.1f} GB free; batch {spec.global_batch} = "
        f"{micro} rows x {share // micro} accumulated x {processes} processes"
    )
    return Batches(rows // spec.global_batch, micro, share // micro, processes, bytes_of[micro])


def estimate_bytes(model: Any, spec: TrainSpec, work: Work) -> int:  # noqa: ANN401
    """Bytes that one process is expected to need at its peak for training `model` with `work` in hand."""
    return estimate.training(shape_of(model), spec.method, spec.stage, work).total


def shape_of(model: Any) -> Shape:  # noqa: ANN401
    """The shape of the base under `model`, whatever wraps it; 4-bit weights count as what they stand for."""
    tensors: list[Tensor] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, p in base.named_parameters():
        if _ADAPTERS.search(name):
            continue
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        state = getattr(p, "quant_state", None)
        sides = tuple(state.shape if state is not None else p.shape)
        tensors.append(Tensor(plain, sides, math.prod(sides) * (4 if state is not None else p.element_size())))
    return Shape.of(model.config.to_dict(), tensors)


def _check_room(model: Any, longest: int) -> None:  # noqa: ANN401
    """Raise SpecError where the longest text fits the model, but not with the soft prompt before it."""
    before = soft_tokens(model)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if before and room and longest <= room < longest + before:
        raise SpecError(
            f"a text of {longest} tokens and the {before} of the soft prompt exceed the model's {room} positions; lower "
            f"max_length to {room - before}, or the method's length"
        )


def available_bytes(run: Run) -> int:
    """Memory of the device that this process may use, what it holds already included."""
    if _on_gpu(run):
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return free_memory() + resident()  # what this process holds already is part of what it needs


def _on_gpu(run: Run) -> bool:
    return run.execution.device != "cpu" and torch.cuda.is_available()
