# pyright: basic
"""What a policy costs in use: time to read a prompt, time per token written, one text at a time; memory of each model alone."""

import ctypes
import gc
import time
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import SpecError
from tasks.core.files import write_json
from tasks.core.launch import resident
from tasks.core.spec import Json
from tasks.profile import PROFILE_FILE, VARIANTS, ProfileSpec
from tasks.tables import read_rows
from tasks.training.batches import soft_tokens
from tasks.training.generate import decode
from tasks.training.models import Loaded, load, torch_device
from tasks.training.vision import encoder_for

_PROMPTS = 64
"""rows whose tokens, one after the other, are the prompt that is read"""


def run(spec: ProfileSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Measure the models of `inputs`: memory of each alone, then time, all loaded and taking turns."""
    names = [name for name in VARIANTS if name in inputs]
    rows = read_rows(inputs["prompts"] / "prompts.parquet", _PROMPTS)
    _alone(inputs["base"], rows, spec, run)  # the first model pays for what libraries set up once
    memory: dict[str, Json] = {name: _alone(inputs[name], rows, spec, run) for name in names}
    loaded = {name: load(inputs[name], run, task="policy") for name in names}
    rounds: list[Any] = []
    for number in range(-1, spec.rounds):
        order = names if number % 2 else names[::-1]  # whoever follows whom, it is as often the other way round
        timed = {name: _timed(loaded[name], rows, spec) for name in order}
        if number >= 0:  # the first round pays for what is set up once
            rounds.append({name: timed[name] for name in names})
        run.progress(Progress(number + 1, spec.rounds, {}))
    found: dict[str, Json] = {
        "device": loaded["base"].device.type,
        "prompt_tokens": spec.prompt_tokens,
        "new_tokens": spec.new_tokens,
        "memory_bytes": memory,
        "rounds": rounds,
    }
    write_json(out / PROFILE_FILE, found)
    return {f"{what}_seconds/{name}": median(times[name][what] for times in rounds) for name in names for what in rounds[0][name]}


def _prompt(loaded: Loaded, rows: Sequence[Mapping[str, Any]], spec: ProfileSpec) -> list[int]:
    """The tokens of the prompts one after the other, over again where they are too few."""
    encoder = encoder_for(loaded, model=loaded.model)
    room = getattr(loaded.model.config, "max_position_embeddings", None)
    before = soft_tokens(loaded.model)
    if room and before + spec.prompt_tokens + spec.new_tokens > room:
        raise SpecError(
            f"profile: {before + spec.prompt_tokens} tokens read and {spec.new_tokens} written exceed the model's {room} "
            "positions; lower prompt_tokens"
        )
    tokens = list(chain.from_iterable(encoder.prompt(row["prompt"]) for row in rows))
    return (tokens * (spec.prompt_tokens // len(tokens) + 1))[: spec.prompt_tokens]


def _timed(loaded: Loaded, rows: Sequence[Mapping[str, Any]], spec: ProfileSpec) -> dict[str, float]:
    """Seconds to read the prompt, and the median of the seconds of each token after that."""
    encoder, prompt = encoder_for(loaded, model=loaded.model), _prompt(loaded, rows, spec)
    stops = torch.tensor(sorted(encoder.stops), device=loaded.device)
    stamps: list[float] = []

    def pick(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
        """The likeliest token that does not end the answer, so that all models write equally much."""
        token_B = logits_BV.index_fill(1, stops, -torch.inf).argmax(dim=-1)
        token_B.tolist()  # on a GPU this waits until it is there
        stamps.append(time.perf_counter())
        return token_B

    started = time.perf_counter()
    decode(loaded.model, [prompt], encoder, spec.new_tokens, pick)
    return {"prefill": _round(stamps[0] - started), "decode": _round(median(b - a for a, b in pairwise(stamps)))}


def _alone(policy: Path, rows: Sequence[Mapping[str, Any]], spec: ProfileSpec, run: Run) -> int:
    """Bytes that this model, loaded and in use, takes of the GPU, or adds to the process, at most at any time of its use."""
    cpu = torch_device(run).type == "cpu"
    before = resident("VmRSS") if cpu else torch.cuda.memory_allocated()
    loaded = load(policy, run, task="policy")
    if cpu:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's record of the highest size starts again at the present one
    else:
        torch.cuda.reset_peak_memory_stats()
    _timed(loaded, rows, spec)
    peak = resident("VmHWM") if cpu else torch.cuda.max_memory_allocated()
    del loaded
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed pieces of this model are not the next one's
    return max(0, peak - before)


def _round(seconds: float) -> float:
    return float(f"{seconds:.5g}")
