# pyright: basic
"""SFT of an encoder-decoder model on transformers' Seq2SeqTrainer: the loss is on the decoder's tokens, stop token included.

The trainer's own loss is a mean over each micro-batch; ours is the sum over the global batch divided by its tokens, so how a
batch is cut does not matter.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from tasks.core.contract import Run
from tasks.train import TrainSpec
from tasks.training.batches import padded
from tasks.training.data import IGNORED
from tasks.training.fit import Quiet, arguments
from tasks.training.preflight import Batches
from tasks.training.seq2seq import Seq2SeqEncoder, Turn, turn


class Collator:
    """Rows of `input_ids` and `labels` as batches for both sides, padded on the right."""

    def __init__(self, encoder: Seq2SeqEncoder) -> None:
        """The encoder knows padding and start token."""
        self._encoder = encoder

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of `rows`."""
        turns, cpu = [sides(row) for row in rows], torch.device("cpu")
        ids_BT, mask_BT = padded([read for read, _ in turns], self._encoder.pad, cpu)
        given_BT, _ = padded([[self._encoder.start, *written[:-1]] for _, written in turns], self._encoder.pad, cpu)
        labels_BT, there_BT = padded([written for _, written in turns], IGNORED, cpu)
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "decoder_input_ids": given_BT,
            "labels": labels_BT.masked_fill(there_BT == 0, IGNORED),
        }


class Trainer(Quiet, Seq2SeqTrainer):
    """Transformers' trainer with a loss per token of the global batch."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401
        """As transformers' own."""
        super().__init__(**given)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by what it is told, so nothing is divided again
        self._right = self._asked = 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None  # noqa: ANN401
    ) -> Any:  # noqa: ANN401  # fmt: skip
        """Negative log-likelihood of the labels, nats, over the labels of the global batch."""
        labels_BT = inputs.pop("labels")
        outputs = model(**inputs)
        there_BT = labels_BT != IGNORED
        logits_NV, wanted_N = outputs.logits[there_BT].float(), labels_BT[there_BT]
        self._right += int((logits_NV.argmax(-1) == wanted_N).sum())
        self._asked += len(wanted_N)
        count = num_items_in_batch if num_items_in_batch is not None else len(wanted_N)
        loss = torch.nn.functional.cross_entropy(logits_NV, wanted_N, reduction="sum") / count
        loss = loss * self.accelerator.num_processes  # gradients are averaged over them
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the share of tokens that came first."""
        if "loss" in logs and self._asked:
            logs = {**logs, "mean_token_accuracy": self._right / self._asked}
            self._right = self._asked = 0
        super().log(logs, start_time)


def trainer(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    encoder: Seq2SeqEncoder,
    rows: Sequence[dict[str, Any]],
    spec: TrainSpec,
    run: Run,
    batches: Batches,
) -> Trainer:
    """A trainer of `model` on `rows` in their order."""
    more: dict[str, Any] = {"remove_unused_columns": False}
    if run.execution.gradient_checkpointing:
        more["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        model.enable_input_require_grads()
    return Trainer(
        model=model,
        args=arguments(Seq2SeqTrainingArguments, spec, run, batches, **more),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=encoder.tokenizer,
        data_collator=Collator(encoder),
    )


def sides(row: dict[str, Any]) -> Turn:
    """What an encoded row reads and writes."""
    return turn(row["input_ids"], [label != IGNORED for label in row["labels"]])
