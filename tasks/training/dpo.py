# pyright: basic
"""DPO on TRL's DPOTrainer.  The reference is the parent policy itself: its log-probabilities are taken before the first step.

They come from the very model that is then trained, without dropout, so this is exact for every method, needs no second copy, and
the first step's margin must be 0; that is checked, because a wrong reference trains without complaint.  Only a fresh soft prompt
moves the policy by being there: its reference is taken with the prompt switched off.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import AlignError
from tasks.core.files import write_json
from tasks.preference import DpoSpec
from tasks.training.adapters import start
from tasks.training.batches import soft_prompt
from tasks.training.data import encode_pairs, read_rows, schedule
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, full_precision, row_metrics
from tasks.training.preflight import plan_batches
from tasks.training.vision import collator, columns, encoder_for

REFERENCE = "reference.json"
"""in the work folder: the reference's log-probabilities, so that a resumed run need not take them again"""
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 2.0}
"""largest log-ratio, in nats per answer, that counts as 0 at the first step: sums over an answer's tokens in this precision"""


class _Dpo(Quiet, DPOTrainer):
    """TRL's trainer on rows that are tokenised and carry their reference."""

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset


class _StartsAtReference(TrainerCallback):
    """At step 1 the policy must be the reference."""

    def __init__(self, beta: float, tolerance: float) -> None:
        self._beta, self._tolerance = beta, tolerance
        self.ratio: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: object) -> None:  # noqa: ANN401
        """Compare once, after the first step."""
        if state.global_step != 1 or not logs or "rewards/margins" not in logs:
            return
        names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
        self.ratio = max(abs(logs[name]) / self._beta for name in names)
        if not self.ratio <= self._tolerance:
            raise AlignError(
                f"DPO did not start at its reference: log-ratio {self.ratio:.4g} nats at the first step, where 0 (up to "
                f"{self._tolerance:g}) is due; the method changes the policy when it is set up, so merge the policy first"
            )


def run(spec: DpoSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on the pairs of `inputs["data"]`, with itself as the reference."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["data"], model=begin.model)
    encoded = encode_pairs(encoder, read_rows(inputs["data"], "train"), max_length=spec.max_length)
    encoded.check(spec.dropped_budget, "train.parquet")
    rows = encoded.rows
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    trained = sum(len(rows[i]["chosen_ids"]) + len(rows[i]["rejected_ids"]) for i in order)
    run.log(f"data: {len(rows)} of {encoded.total} pairs, {encoded.truncated} cut at {spec.max_length} tokens")
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=longest, texts=2)
    cheap_head(run)
    with adapter_copy(begin.model):
        trainer = _Dpo(
            model=begin.model,
            args=arguments(
                DPOConfig,
                spec,
                run,
                batches,
                max_length=None,
                beta=spec.beta,
                loss_type=[spec.loss],
                precompute_ref_log_probs=True,
                disable_dropout=True,
                **columns(encoder),
            ),
            train_dataset=Dataset.from_list([rows[i] for i in order]),
            processing_class=encoder.tokenizer,
            data_collator=collator(DataCollatorForPreference(pad_token_id=encoder.pad), encoder, copies=2),
        )
    used = sorted(set(order), key=lambda i: (lengths[i], i))
    moved = begin.how == "fresh" and soft_prompt(begin.model)
    with begin.model.disable_adapter() if moved else nullcontext():
        reference = _reference(trainer, rows, used, batches.micro_batch, run)
    with_reference = [{**rows[i], "ref_chosen_logps": reference[i][0], "ref_rejected_logps": reference[i][1]} for i in order]
    trainer.train_dataset = Dataset.from_list(with_reference)
    width = torch.float32 if torch_float32(begin.model) and not trainer.args.bf16 else torch.bfloat16
    check = _StartsAtReference(spec.beta, inf if moved else TOLERANCE[width])
    trainer.add_callback(check)
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    return {**row_metrics(encoded), **metrics, "trained_tokens": trained, "first_step_log_ratio": check.ratio}


def torch_float32(model: Any) -> bool:  # noqa: ANN401
    """Whether every floating-point weight of `model` is float32."""
    return all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())


@contextmanager
def adapter_copy(model: Any) -> Iterator[None]:  # noqa: ANN401
    """While one of TRL's trainers is made: drop the copy it adds as `ref`, which is not exact for every method, nor needed."""
    with full_precision(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter name 'ref'")
        yield
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")


def _reference(trainer: Any, rows: Sequence[dict[str, Any]], used: Sequence[int], size: int, run: Run) -> dict[int, list[float]]:  # noqa: ANN401
    """Row number -> summed log-probability (nats) of its chosen and rejected answer under the parent policy."""
    memory = run.work / REFERENCE
    accelerator = trainer.accelerator
    if memory.is_file():
        known = {int(i): pair for i, pair in json.loads(memory.read_text()).items()}
        if set(used) <= known.keys():
            return known
    model = trainer.model.eval().to(accelerator.device)
    known = {}
    chunks = [used[at : at + size] for at in range(0, len(used), size)][accelerator.process_index :: accelerator.num_processes]
    for number, chunk in enumerate(chunks):
        batch = {name: x.to(accelerator.device) for name, x in trainer.data_collator([rows[i] for i in chunk]).items()}
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        with torch.no_grad(), accelerator.autocast():
            logps = model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)
        chosen, rejected = logps.float().chunk(2)
        known |= {i: [c, r] for i, c, r in zip(chunk, chosen.tolist(), rejected.tolist(), strict=True)}
        if accelerator.is_main_process:
            run.progress(Progress(number + 1, len(chunks), {"reference": 1.0}))
    model.train()
    if accelerator.num_processes > 1:
        parts: list[Any] = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(parts, known)
        known = {i: pair for part in parts for i, pair in part.items()}
    if accelerator.is_main_process:
        write_json(memory, {str(i): list(pair) for i, pair in known.items()})
    return known
