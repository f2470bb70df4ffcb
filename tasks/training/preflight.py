# pyright: basic
"""Before the first step: does it fit into memory, and how is the global batch cut up?  Execution only, never a result."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.core.contract import Run
from tasks.core.errors import AlignError, MachineError, SpecError
from tasks.core.launch import MICRO_BATCH
from tasks.train import TrainSpec
from tasks.training.batches import soft_tokens

LIBRARIES = 1_200_000_000
"""bytes that torch, transformers and their kernels take before any model (measured: 0.9 to 1.2 GB)"""
HEAD_TOKENS, HEAD_VOCABULARY = 256, 32768
"""tile of the chunked language-model head, see `trl.kernels.chunked_logprob`"""


@dataclass(frozen=True)
class Batches:
    """How a global batch is cut: rows = micro_batch x accumulation x processes."""

    steps: int
    micro_batch: int
    accumulation: int
    processes: int
    estimate: int
    """bytes that one process is expected to need"""


def plan_batches(spec: TrainSpec, run: Run, model: Any, *, rows: int, longest: int, texts: int) -> Batches:  # noqa: ANN401
    """Cut the global batch of `spec` so that it fits; remember the size for a retry after running out of memory.

    `rows`: rows of the whole schedule.  `longest`: tokens of the longest text.  `texts`: texts per row (2 for a pair).
    Raises SpecError if the processes do not divide the batch, MachineError if not even one row at a time fits.
    """
    processes = run.execution.processes
    if processes != (there := int(os.environ.get("WORLD_SIZE", "1"))):
        raise AlignError(f"execution.processes is {processes}, but {there} were launched")
    if spec.global_batch % processes:
        raise SpecError(f"global_batch {spec.global_batch} cannot be shared by {processes} processes; make it a multiple")
    share = spec.global_batch // processes
    longest = _with_soft_prompt(model, longest)
    sizes = [n for n in range(min(run.execution.micro_batch or 8, share), 0, -1) if share % n == 0]
    limit = available_bytes(run) // (1 if _on_gpu(run) else processes)
    needs = {
        n: estimate_bytes(model, tokens=n * texts * longest, checkpointing=run.execution.gradient_checkpointing) for n in sizes
    }
    micro = next((n for n in sizes if needs[n] <= limit), None)
    if micro is None:
        raise MachineError(
            f"one row at a time needs about {needs[1] / 1e9:.1f} GB, {limit / 1e9:.1f} GB are free; shorten max_length, set "
            "execution.gradient_checkpointing, use qlora, or take a larger machine"
        )
    if int(os.environ.get("RANK", "0")) == 0:
        (run.work / MICRO_BATCH).write_text(str(micro))
    run.log(
        f"memory: about {needs[micro] / 1e9:.2f} GB of {limit / 1e9:.1f} GB free; batch {spec.global_batch} = "
        f"{micro} rows x {share // micro} accumulated x {processes} processes"
    )
    return Batches(rows // spec.global_batch, micro, share // micro, processes, needs[micro])


def estimate_bytes(model: Any, *, tokens: int, checkpointing: bool) -> int:  # noqa: ANN401
    """Bytes for training `model` on `tokens` tokens at once: weights, gradients, AdamW, activations, a tile of logits.

    Activations: what a Llama-like block keeps for its backward pass is about 16 hidden and 5 feed-forward widths per token
    (norms, projections, attention, gate, inputs of adapters); with checkpointing only one hidden width, and one block's worth.
    """
    config = model.config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = next((p.element_size() for p in model.parameters() if p.is_floating_point()), 4)
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    block = 16 * config.hidden_size + 5 * wide
    layers = config.num_hidden_layers
    per_token = (layers * config.hidden_size + block) if checkpointing else layers * block
    tile = 3 * HEAD_TOKENS * min(HEAD_VOCABULARY, config.vocab_size) * 4
    return LIBRARIES + weights + 12 * trainable + int(1.15 * tokens * per_token * width) + tile


def _with_soft_prompt(model: Any, longest: int) -> int:  # noqa: ANN401
    """Tokens of the longest text with the soft prompt before it.  Raises SpecError where only the text alone fits the model."""
    before = soft_tokens(model)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if before and room and longest <= room < longest + before:
        raise SpecError(
            f"a text of {longest} tokens and the {before} of the soft prompt exceed the model's {room} positions; lower "
            f"max_length to {room - before}, or the method's length"
        )
    return before + longest


def available_bytes(run: Run) -> int:
    """Free memory of the device the run trains on."""
    if _on_gpu(run):
        return torch.cuda.mem_get_info()[0]
    words = Path("/proc/meminfo").read_text().split()
    free = int(words[words.index("MemAvailable:") + 1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = (group / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return free
    reclaimable = int(stat[stat.index("inactive_file") + 1])
    return free if limit == "max" else min(free, int(limit) - used + reclaimable)


def _on_gpu(run: Run) -> bool:
    return run.execution.device != "cpu" and torch.cuda.is_available()
