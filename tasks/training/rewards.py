# pyright: basic
"""What a reward model gives to held-out pairs and to generated answers; it reads a text exactly as it did in training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import DataError
from tasks.measure import RewardsSpec, longer, subjects
from tasks.tables import ANSWERS_FILE, answer_item, read_rows, score, write_scores
from tasks.training.batches import by_length, padded, rows_at_once, soft_tokens
from tasks.training.data import Encoder, scored_ids, told_twice
from tasks.training.models import Loaded, load
from tasks.training.vision import encoder_for

JUDGE = "reward_model"
ROWS = {"cpu": 64, "cuda": 256}
"""texts at once"""
TOKENS = {"cpu": 2048, "cuda": 32_768}
"""tokens of a batch at most, padding counted"""


def run(spec: RewardsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` for the pairs and answers in `inputs`."""
    loaded = load(inputs["reward_model"], run, task="reward")
    answered = subjects(inputs)
    encoder = encoder_for(loaded, *(inputs[name] for name in inputs if name != JUDGE), model=loaded.model)
    wanted: list[tuple[str, str, dict[str, Any], list[int]]] = []  # subject, metric, item, tokens
    rows: list[dict[str, Any]] = []
    left_out = 0
    if "preferences" in inputs:
        pairs = read_rows(inputs["preferences"] / "heldout.parquet", spec.limit)
        rows += longer(pairs)
        for pair in encoder.prepared(pairs):
            sides = {side: scored_ids(encoder, pair["prompt"], pair[side]) for side in ("chosen", "rejected")}
            if encoder.unusable(told_twice(pair)) or max(map(len, sides.values())) > spec.max_length:
                left_out += 1
                continue
            wanted += [(JUDGE, f"{side}_reward", pair, ids) for side, ids in sides.items()]
    for subject, folder in answered.items():
        for answer in encoder.prepared(read_rows(folder / ANSWERS_FILE)):
            wanted.append((subject, "reward", answer, scored_ids(encoder, answer["prompt"], answer["answer"])))
    if not wanted:
        raise DataError(f"nothing to reward ({left_out} pairs exceed max_length {spec.max_length}); raise it, or give answers")
    means: dict[str, list[float]] = {}
    pictures = [encoder.pictures(item["prompt"]) for _, _, item, _ in wanted]
    scored = values(loaded, encoder, [ids for *_, ids in wanted], run, pictures)
    for (subject, metric, item, _), value in zip(wanted, scored, strict=True):
        rows.append(score(metric, {**item, "id": answer_item(item)}, value, subject=subject))
        means.setdefault(f"{metric}/{subject}", []).append(value)
    write_scores(out, rows)
    return {**{name: sum(found) / len(found) for name, found in sorted(means.items())}, "pairs_left_out": left_out}


@torch.inference_mode()
def values(
    loaded: Loaded, encoder: Encoder, texts: Sequence[list[int]], run: Run, pictures: Sequence[Sequence[str]] = ()
) -> list[float]:
    """The scalar score of each text, given as tokens with the template's tail and the names of its images."""
    kind = loaded.device.type
    found = [0.0] * len(texts)
    done = 0
    lengths = [soft_tokens(loaded.model) + len(ids) for ids in texts]
    for batch in by_length(lengths, rows=rows_at_once(run, ROWS[kind]), tokens=TOKENS[kind]):
        ids_BT, mask_BT = padded([texts[i] for i in batch], encoder.pad, loaded.device)
        seen = encoder.seen(ids_BT, [pictures[i] for i in batch] if pictures else ())
        score_B = loaded.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **seen).logits[:, 0]
        for i, value in zip(batch, score_B.double().tolist(), strict=True):
            found[i] = value
        done += len(batch)
        run.progress(Progress(done, len(texts), {}))
    return found
