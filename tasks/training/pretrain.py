# pyright: basic
"""Continued pre-training on plain text: every token is trained on, and rows are packed full of whole texts.

A packed text sees nothing of its neighbours: positions start again with each, and attention stops there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tasks.core.contract import Inputs, Metrics, Run
from tasks.core.errors import DataError, SpecError
from tasks.train import PretrainSpec
from tasks.training.adapters import start
from tasks.training.data import Encoder, read_rows, schedule
from tasks.training.fit import able, arguments, cheap_head, fit, full_precision
from tasks.training.preflight import plan_batches
from tasks.training.sft import Sft

disable_progress_bars()  # a child's output is for its log


def run(spec: PretrainSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on the texts of `inputs["data"]`."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = Encoder(begin.loaded.tokenizer, begin.model)
    texts = read_rows(inputs["data"], "texts")
    _check_apart(begin.model, encoder)
    rows = packed(encoder, [row["text"] for row in texts], spec.max_length)
    lengths = [len(row["input_ids"]) for row in rows]
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    trained = sum(lengths[i] - len(rows[i]["seq_lengths"]) for i in order)
    full = sum(lengths) / (len(rows) * spec.max_length)
    run.log(f"data: {len(texts)} texts, {sum(lengths):,} tokens in {len(rows)} rows of {spec.max_length}, {full:.1%} full")
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=max(lengths), texts=1)
    cheap_head(run)
    settings = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    with full_precision(begin.model):
        trainer = Sft(
            model=begin.model,
            args=arguments(SFTConfig, spec, run, batches, **settings),
            train_dataset=Dataset.from_list([rows[i] for i in order]),
            processing_class=encoder.tokenizer,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=encoder.pad, padding_free=True),
        )
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    return {"rows": len(texts), "rows_packed": len(rows), "packed_full": full, **metrics, "trained_tokens": trained}


@torch.no_grad()
def _check_apart(model: Any, encoder: Encoder) -> None:  # noqa: ANN401
    """Raise SpecError where packed texts see each other: some families make their masks without looking at positions."""
    one, two = encoder.ids("first text"), encoder.ids("another")
    device = next(model.parameters()).device
    was = model.training
    model.eval()
    both = {"input_ids": [one + two], "position_ids": [[*range(len(one)), *range(len(two))]]}
    together = model(**{name: torch.tensor(value, device=device) for name, value in both.items()}, use_cache=False).logits
    alone = model(input_ids=torch.tensor([two], device=device), use_cache=False).logits
    model.train(was)
    if float((together[0, len(one) :] - alone[0]).abs().max()) > 0.01 * float(alone.abs().max()):
        raise SpecError(
            f"pretrain: {model.config.model_type} lets packed texts see each other, so they cannot be packed; use another base"
        )


def packed(encoder: Encoder, texts: Sequence[str], max_length: int) -> list[dict[str, Any]]:
    """Rows of `input_ids` and `seq_lengths`: texts, each ended by the tokenizer's eos, best-fit into `max_length` tokens.

    A text longer than that is cut into pieces; no token is lost.  Raises DataError if there is nothing to learn from.
    """
    end = encoder.tokenizer.eos_token_id
    if end is None:
        raise SpecError("pretrain: the base's tokenizer has no eos token to end a text with; give it one")
    encoded = [encoder.tokenizer.encode(text) for text in texts]  # as `scores` reads a text, bos included
    encoded = [ids if ids[-1:] == [end] else [*ids, end] for ids in encoded]
    if not any(text and len(ids) > 1 for text, ids in zip(texts, encoded, strict=True)):
        raise DataError("texts.parquet: no text has a token to learn; give data.corpus more")
    return pack_dataset(Dataset.from_dict({"input_ids": encoded}), max_length, strategy="bfd_split").to_list()
