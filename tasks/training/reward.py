# pyright: basic
"""Reward model on TRL's RewardTrainer: a scalar head on the SFT policy, trained to score chosen above rejected (Bradley-Terry).

A text is scored at its last token, the end of the template's tail, in training and in use: batches are padded with a token that
no text ends with (`models.pad_id`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.train import RewardSpec
from tasks.training.adapters import start
from tasks.training.data import Encoder, encode_texts, read_rows, schedule
from tasks.training.fit import Quiet, able, arguments, fit, full_precision, row_metrics
from tasks.training.preflight import plan_batches
from tasks.training.vision import PICTURES, collator, columns, encoder_for

HELDOUT_ROWS = 64
"""held-out pairs scored at the end; the measure stage looks at all of them"""


class _Reward(Quiet, RewardTrainer):
    pass


def run(spec: RewardSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train a scalar head, and `inputs["policy"]` under it, on the pairs of `inputs["data"]`."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["data"])
    encoded = encode_texts(encoder, read_rows(inputs["data"], "train"), max_length=spec.max_length)
    encoded.check(spec.dropped_budget, "train.parquet")
    lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in encoded.rows]
    longest = max(len(row[side]) for row in encoded.rows for side in ("chosen_ids", "rejected_ids"))
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    run.log(f"data: {len(encoded.rows)} of {encoded.total} pairs, the longest text has {longest} tokens")
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=longest, texts=2)
    encoder.tokenizer.pad_token = encoder.tokenizer.convert_ids_to_tokens(encoder.pad)  # and so the model's
    with full_precision(begin.model):
        trainer = _Reward(
            model=begin.model,
            args=arguments(
                RewardConfig,
                spec,
                run,
                batches,
                max_length=None,
                center_rewards_coefficient=spec.center_rewards_coefficient or None,
                **columns(encoder),
            ),
            train_dataset=Dataset.from_list([encoded.rows[i] for i in order]),
            processing_class=encoder.tokenizer,
            data_collator=collator(DataCollatorForPreference(pad_token_id=encoder.pad), encoder, copies=2),
        )
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    rows = read_rows(inputs["data"], "heldout", HELDOUT_ROWS)
    held = encode_texts(encoder, rows, max_length=spec.max_length).rows
    return {**row_metrics(encoded), **metrics, **_heldout(begin.model, encoder, held, rows, 2 * batches.micro_batch)}


def score_texts(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    encoder: Encoder,
    texts: Sequence[list[int]],
    *,
    batch: int,
    pictures: Sequence[Sequence[str]] = (),
) -> list[float]:
    """Scalar scores of tokenised texts (see `data.scored_ids`), in their order; texts of like length are scored together.

    `pictures`: names of each text's images.
    """
    device = next(model.parameters()).device
    scores = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    model.eval()
    with torch.no_grad():
        for at in range(0, len(order), batch):
            chunk = order[at : at + batch]
            longest = len(texts[chunk[-1]])
            ids = torch.tensor([texts[i] + [encoder.pad] * (longest - len(texts[i])) for i in chunk], device=device)
            mask = torch.tensor([[1] * len(texts[i]) + [0] * (longest - len(texts[i])) for i in chunk], device=device)
            seen = encoder.seen(ids, [pictures[i] for i in chunk] if pictures else ())
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **seen).logits
            for i, score in zip(chunk, logits[:, 0].float().tolist(), strict=True):
                scores[i] = score
    return scores


def _heldout(model: Any, encoder: Encoder, held: list[dict[str, Any]], rows: list[dict[str, Any]], batch: int) -> Metrics:  # noqa: ANN401
    """Share of held-out pairs ranked right, beside the share that preferring the longer answer would get (ties 0.5)."""
    if not held:
        return {"heldout_rows": 0}
    pictures = [row.get(PICTURES, []) for row in held]
    chosen = score_texts(model, encoder, [row["chosen_ids"] for row in held], batch=batch, pictures=pictures)
    rejected = score_texts(model, encoder, [row["rejected_ids"] for row in held], batch=batch, pictures=pictures)
    longer = [_wins(len(row["chosen"]), len(row["rejected"])) for row in rows]
    return {
        "heldout_rows": len(held),
        "heldout_accuracy": sum(_wins(c, r) for c, r in zip(chosen, rejected, strict=True)) / len(held),
        "heldout_length_baseline": sum(longer) / len(longer),
        "heldout_margin": sum(c - r for c, r in zip(chosen, rejected, strict=True)) / len(held),
    }


def _wins(a: float, b: float) -> float:
    return 0.5 if a == b else float(a > b)
