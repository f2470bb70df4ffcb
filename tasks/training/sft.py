# pyright: basic
"""Supervised fine-tuning on TRL's SFTTrainer: the loss is on each assistant turn, stop token included, and on nothing else."""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.train import SftSpec
from tasks.training.adapters import start
from tasks.training.data import IGNORED, encode_instructions, read_rows, schedule
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, full_precision, row_metrics
from tasks.training.preflight import plan_batches
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
    cheap_head(run)
    with full_precision(begin.model):
        trainer = Sft(
            model=begin.model,
            args=arguments(
                SFTConfig,
                spec,
                run,
                batches,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                **columns(encoder),
            ),
            train_dataset=Dataset.from_list([encoded.rows[i] for i in order]),
            processing_class=encoder.tokenizer,
            data_collator=collator(DataCollatorForLanguageModeling(pad_token_id=encoder.pad), encoder),
        )
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    held = encode_instructions(encoder, read_rows(inputs["data"], "heldout", HELDOUT_ROWS), max_length=spec.max_length)
    heldout = _loss(trainer, held.rows, batches.micro_batch) if held.rows else None
    return {**row_metrics(encoded), **metrics, "trained_tokens": trained, "heldout_loss": heldout, "heldout_rows": len(held.rows)}


def _loss(trainer: Any, rows: list[dict[str, Any]], size: int) -> float:  # noqa: ANN401
    """Mean negative log-likelihood per answer token, nats."""
    model, total, tokens = trainer.accelerator.unwrap_model(trainer.model).eval(), [], 0
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    with torch.no_grad():
        for i in range(0, len(rows), size):
            batch = {name: x.to(trainer.args.device) for name, x in trainer.data_collator(rows[i : i + size]).items()}
            outputs = model(**batch, fused_lm_head=True)
            total.append(float(outputs.log_probs.sum()))
            tokens += int(outputs.label_mask.sum())
    return -math.fsum(total) / tokens
