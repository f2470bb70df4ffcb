# pyright: basic
"""Batches for inference: rows of like length together, as many as a step may hold.  Results do not depend on the cut."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tasks.core.contract import Run
from tasks.core.launch import MICRO_BATCH


def rows_at_once(run: Run, usual: int) -> int:
    """`usual`, or less after an attempt ran out of memory; what is used is noted for the next attempt to halve."""
    noted = run.work / MICRO_BATCH
    rows = min(usual, int(noted.read_text())) if noted.exists() else usual
    noted.write_text(str(rows))
    return rows


def by_length(lengths: Sequence[int], *, rows: int, tokens: int, equal: bool = False) -> Iterator[list[int]]:
    """Numbers of the rows in batches, shortest rows first: at most `rows` rows and `tokens` tokens, padding counted.

    A row longer than `tokens` is a batch of its own.  With `equal` a batch holds rows of one length only.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[number]
        if batch and (len(batch) == rows or length * (len(batch) + 1) > tokens or (equal and length != lengths[batch[-1]])):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool = False) -> tuple[Any, Any]:
    """`rows` as one tensor and its mask of true tokens; (B, T) each."""
    width = max(map(len, rows))
    ids_BT = torch.full((len(rows), width), pad, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[i, place] = torch.tensor(row, dtype=torch.long)
        mask_BT[i, place] = 1
    return ids_BT.to(device), mask_BT.to(device)


def soft_prompt(model: Any) -> bool:  # noqa: ANN401  transformers and PEFT models
    """Whether the model puts trained vectors before its input, so that positions and padding cannot be given to it."""
    active = getattr(model, "active_peft_config", None)
    return bool(active is not None and active.is_prompt_learning)
