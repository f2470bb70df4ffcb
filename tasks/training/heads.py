# pyright: basic
"""Train a task head on labelled rows: a label for a text, a tag for each token, a span of a context.

The loss is a mean over everything that has a label in a global batch, so a result does not depend on how the batch is cut.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from tasks.core.contract import Inputs, Metrics, Run
from tasks.core.errors import DataError, SpecError
from tasks.heads import Head, TaskSpec, write_head
from tasks.methods import METHODS
from tasks.policy import ADAPTERS
from tasks.training.adapters import Start, start
from tasks.training.batches import soft_tokens
from tasks.training.data import IGNORED, Encoded, read_rows, schedule
from tasks.training.fit import Quiet, able, arguments, fit, row_metrics
from tasks.training.head_data import collate, encode, rows_of
from tasks.training.head_models import padding, renamed
from tasks.training.preflight import plan_batches

HELDOUT_ROWS = 64
"""held-out rows whose loss is taken at the end; the predict stage looks at all of them"""


class _Heads(Quiet, Trainer):
    model_accepts_loss_kwargs = True
    loss_is_scaled_for_ga = True
    kind = ""

    def compute_loss(
        self,
        model: Any,  # noqa: ANN401
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Summed loss over the number of labels in the whole global batch, all processes together."""
        total = head_loss(self.kind, model, inputs) / num_items_in_batch
        return total * self.accelerator.num_processes  # processes are averaged over afterwards


def run(spec: TaskSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train a head, and `inputs["policy"]` under it, on the labelled rows of `inputs["data"]`."""
    run = able(spec, run)
    rows = rows_of(spec.kind, read_rows(inputs["data"], "train"), "train.parquet")
    head = head_of(spec, rows)
    begin = start(inputs["policy"], spec, run, head)
    adapter = METHODS[spec.method.name].adapter
    key_mapping = renamed(begin.model.get_base_model()) if adapter else {}  # a whole model is saved under its own names
    _fits(begin.model, spec)
    tokenizer, pad = begin.loaded.tokenizer, padding(begin.loaded.tokenizer)
    encoded = encode(tokenizer, head, rows)
    encoded.check(spec.dropped_budget, "train.parquet")
    lengths = [len(row["input_ids"]) for row in encoded.rows]
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    run.log(
        f"data: {len(rows)} rows in {len(encoded.rows)} windows, {encoded.truncated} cut at {spec.max_length} tokens; "
        f"{len(head.labels) or 'no'} labels"
    )
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=max(lengths), texts=1)
    trainer = _Heads(
        model=begin.model,
        args=arguments(TrainingArguments, spec, run, batches, remove_unused_columns=False, label_names=["labels"]),
        train_dataset=Dataset.from_list([encoded.rows[i] for i in order]),
        data_collator=lambda part: collate(part, pad, spec.kind),
    )
    trainer.kind, trainer.model_accepts_loss_kwargs = spec.kind, True
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    if trainer.is_world_process_zero():
        _remember(begin, head.model_copy(update={"key_mapping": key_mapping}), out)
    held = rows_of(spec.kind, read_rows(inputs["data"], "heldout", HELDOUT_ROWS), "heldout.parquet")
    seen = encode(tokenizer, head, [row for row in held if _known(head, row)])
    return {**_labels(head, rows), **row_metrics(encoded), **metrics, **_heldout(trainer, seen, batches.micro_batch, pad)}


def head_of(spec: TaskSpec, rows: Sequence[dict[str, Any]]) -> Head:
    """The head that `rows` ask for: their labels, sorted.  Raises DataError where there is nothing to tell apart."""
    shape = {name: getattr(spec, name) for name in ("kind", "max_length", "stride", "max_answer_tokens")}
    if spec.kind == "question_answering":
        return Head(**shape, unanswerable=any(not row["answers"] for row in rows))
    counts = _counts(spec.kind, rows)
    if len(counts) < 2:
        raise DataError(f"train.parquet: {len(counts)} different labels, so there is nothing to tell apart; map another column?")
    majority = min(counts, key=lambda label: (-counts[label], label))
    return Head(**shape, labels=tuple(sorted(counts)), majority=majority)


def head_loss(kind: str, model: Any, batch: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
    """Cross-entropy, summed over the labels of `batch`, nats."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    if kind == "sequence_classification":
        return cross_entropy(model(**given).logits.float(), labels, reduction="sum")
    if kind == "token_classification":
        logits_BTC = model(**given).logits[:, -batch["input_ids"].shape[1] :]  # without the positions of a soft prompt
        return cross_entropy(logits_BTC.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    start_BT, end_BT = span_logits(model, given)
    return cross_entropy(start_BT, labels[:, 0], reduction="sum") + cross_entropy(end_BT, labels[:, 1], reduction="sum")


def span_logits(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Start and end logits, -inf on padding; (B, T) each."""
    found = model(**given)
    width, unseen = given["input_ids"].shape[1], given["attention_mask"] == 0
    return tuple(x[:, -width:].float().masked_fill(unseen, -torch.inf) for x in (found.start_logits, found.end_logits))  # pyright: ignore[reportReturnType]


def _counts(kind: str, rows: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(label for row in rows for label in ([row["label"]] if kind == "sequence_classification" else row["tags"]))


def _known(head: Head, row: dict[str, Any]) -> bool:
    """Whether training knew all labels of `row`: others have no number."""
    labels = [row["label"]] if head.kind == "sequence_classification" else row["tags"] or []
    return head.kind == "question_answering" or set(labels) <= set(head.labels)


def _labels(head: Head, rows: Sequence[dict[str, Any]]) -> Metrics:
    if head.majority is None:
        return {"unanswerable": sum(not row["answers"] for row in rows)}
    counts = _counts(head.kind, rows)
    return {"labels": len(head.labels), "majority_share": round(counts[head.majority] / counts.total(), 6)}


def _fits(model: Any, spec: TaskSpec) -> None:  # noqa: ANN401
    """Raise SpecError where the model has fewer positions than `max_length` and a soft prompt ask for."""
    there = getattr(model.config, "max_position_embeddings", None)
    wanted = spec.max_length + soft_tokens(model)
    if there is not None and wanted > there:
        raise SpecError(f"task.max_length {spec.max_length}: this model has {there} positions; make it smaller")


def _remember(begin: Start, head: Head, out: Path) -> None:
    """Beside the weights, the labels: for this project, and as the configuration that transformers reads."""
    write_head(out, head)
    trained = begin.record.chain[-1].adapter
    if trained is not None:
        begin.model.config.to_json_file(out / ADAPTERS / trained / "config.json")


def _heldout(trainer: Any, encoded: Encoded, size: int, pad: int) -> Metrics:  # noqa: ANN401
    """Mean loss per label, nats."""
    if not encoded.rows:
        return {"heldout_rows": 0}
    model, total, count = trainer.accelerator.unwrap_model(trainer.model).eval(), 0.0, 0
    rows = sorted(encoded.rows, key=lambda row: len(row["input_ids"]))
    with torch.no_grad():
        for i in range(0, len(rows), size):
            batch = {name: x.to(trainer.args.device) for name, x in collate(rows[i : i + size], pad, trainer.kind).items()}
            total += float(head_loss(trainer.kind, model, batch))
            count += int((batch["labels"] != IGNORED).sum())
    return {"heldout_rows": encoded.total, "heldout_loss": total / count}
