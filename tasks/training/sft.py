# pyright: basic
"""Supervised fine-tuning on TRL's SFTTrainer: the loss is on each assistant turn, stop token included, and on nothing else.

An encoder-decoder model is trained by `seq2seq_trainer`, on the last assistant turn.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.train import SftSpec
from tasks.training import seq2seq_trainer
from tasks.training.adapters import start
from tasks.training.data import IGNORED, Encoder, encode_instructions, read_rows, schedule
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, full_precision, row_metrics
from tasks.training.preflight import Batches, plan_batches
from tasks.training.seq2seq import Seq2SeqEncoder, mean_nll
from tasks.training.vision import collator, columns, encoder_for

HELDOUT_ROWS = 16
"""held-out conversations whose loss is taken at the end; the measure stage looks at all of them"""


class Sft(Quiet, SFTTrainer):
    """TRL's trainer on rows that are tokenised."""


def run(spec: SftSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on the conversations of `inputs["data"]`."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["data"], model=begin.model)
    encoded = encode_instructions(encoder, read_rows(inputs["data"], "train"), max_length=spec.max_length)
    encoded.check(spec.dropped_budget, "train.parquet")
    lengths = [len(row["input_ids"]) for row in encoded.rows]
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    trained = sum(label != IGNORED for i in order for label in encoded.rows[i]["labels"][1:])
    run.log(
        f"data: {len(encoded.rows)} of {encoded.total} conversations, {encoded.truncated} cut at {spec.max_length} tokens; "
        f"{trained} of {sum(lengths[i] for i in order)} tokens are trained on"
    )
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=max(lengths), texts=1)
    rows = [encoded.rows[i] for i in order]
    if isinstance(encoder, Seq2SeqEncoder):
        trainer = seq2seq_trainer.trainer(begin.model, encoder, rows, spec, run, batches)
    else:
        trainer = _trainer(begin.model, encoder, rows, spec, run, batches)
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    held = encode_instructions(encoder, read_rows(inputs["data"], "heldout", HELDOUT_ROWS), max_length=spec.max_length)
    heldout = _loss(trainer, encoder, held.rows, batches.micro_batch) if held.rows else None
    return {**row_metrics(encoded), **metrics, "trained_tokens": trained, "heldout_loss": heldout, "heldout_rows": len(held.rows)}


def _trainer(
    model: Any, encoder: Encoder, rows: Sequence[dict[str, Any]], spec: SftSpec, run: Run, batches: Batches  # noqa: ANN401
) -> Sft:  # fmt: skip
    cheap_head(run)
    more: dict[str, Any] = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, **columns(encoder)}
    with full_precision(model):
        return Sft(
            model=model,
            args=arguments(SFTConfig, spec, run, batches, **more),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=encoder.tokenizer,
            data_collator=collator(DataCollatorForLanguageModeling(pad_token_id=encoder.pad), encoder),
        )


def _loss(trainer: Any, encoder: Encoder, rows: list[dict[str, Any]], size: int) -> float:  # noqa: ANN401
    """Mean negative log-likelihood per answer token, nats."""
    if isinstance(encoder, Seq2SeqEncoder):
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        return mean_nll(model, encoder, [seq2seq_trainer.sides(row) for row in rows], size)
    model, total, tokens = trainer.accelerator.unwrap_model(trainer.model).eval(), [], 0
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    with torch.no_grad():
        for i in range(0, len(rows), size):
            batch = {name: x.to(trainer.args.device) for name, x in trainer.data_collator(rows[i : i + size]).items()}
            outputs = model(**batch, fused_lm_head=True)
            total.append(float(outputs.log_probs.sum()))
            tokens += int(outputs.label_mask.sum())
    return -math.fsum(total) / tokens
