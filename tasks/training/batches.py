# pyright: basic
"""Batches for inference: rows of like length together, as many as a step may hold.  Results do not depend on the cut."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PrefixTuningConfig

from tasks.core.contract import Run
from tasks.core.launch import MICRO_BATCH


def rows_at_once(run: Run, usual: int) -> int:
    """`usual`, or less after an attempt ran out of memory; what is used is noted for the next attempt to halve."""
    noted = run.work / MICRO_BATCH
    rows = min(usual, int(noted.read_text())) if noted.exists() else usual
    noted.write_text(str(rows))
    return rows


def by_length(lengths: Sequence[int], *, rows: int, tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows in batches, shortest rows first: at most `rows` rows and `tokens` tokens, padding counted.

    A row longer than `tokens` is a batch of its own.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[number]
        if batch and (len(batch) == rows or length * (len(batch) + 1) > tokens):
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
    """Whether the model puts trained vectors before its input."""
    active = getattr(model, "active_peft_config", None)
    return bool(active is not None and active.is_prompt_learning)


def soft_tokens(model: Any) -> int:  # noqa: ANN401
    """Positions that the model's own vectors take before its input."""
    return int(model.active_peft_config.num_virtual_tokens) if soft_prompt(model) else 0


def under_soft_prompt(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[str, Any]:  # noqa: ANN401
    """What the base model is to be given so that it reads rows padded on the left as `model` reads each row alone.

    The vectors come first, then the padding, then the row: its positions go on from the vectors, and the mask hides the padding.
    """
    before = soft_tokens(model)
    seen_BP = mask_BT.new_ones(len(mask_BT), before)
    mask = torch.cat([seen_BP, mask_BT], dim=1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    if isinstance(model.active_peft_config, PrefixTuningConfig):
        given = {"input_ids": ids_BT, "past_key_values": model.get_prompt(len(ids_BT)), "position_ids": position[:, before:]}
    else:
        words_BTH = model.get_input_embeddings()(ids_BT)
        vectors_BPH = model.get_prompt(len(ids_BT)).to(words_BTH)
        given = {"inputs_embeds": torch.cat([vectors_BPH, words_BTH], dim=1), "position_ids": position}
    return {**given, "attention_mask": mask}
