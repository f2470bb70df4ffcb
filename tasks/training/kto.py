# pyright: basic
"""KTO on TRL's KTOTrainer.  The reference is the parent policy itself, its log-probabilities taken before the first step.

The KL of eq. 7 is estimated on mismatched texts: each prompt of a global batch with the answer to another one.  TRL takes both
from a micro-batch; here they are of the global batch, and the estimate is made once a step before its first backward pass, so a
result does not depend on how the batch is cut, and one row at a time is as good as eight.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import AlignError, DataError
from tasks.core.files import write_json
from tasks.preference import KtoSpec
from tasks.training.adapters import Start, start
from tasks.training.batches import soft_prompt
from tasks.training.data import Encoded, encode_answers, encode_pairs, read_rows, schedule
from tasks.training.dpo import REFERENCE, TOLERANCE, adapter_copy, torch_float32
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, row_metrics
from tasks.training.preflight import Batches, plan_batches
from tasks.training.vision import encoder_for

SIDES = ("chosen", "rejected")
"""what TRL calls liked and disliked"""


class Text(NamedTuple):
    """A prompt and an answer, as tokens."""

    prompt_ids: list[int]
    completion_ids: list[int]


class _Kto(Quiet, KTOTrainer):
    """TRL's trainer on rows that are tokenised and carry their reference; the KL is that of the global batch."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._kl = torch.zeros(())
        self._counts: dict[str, list[float]] = {side: [] for side in SIDES}

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The micro-batches of a step; on the way, the KL of all of them under the weights that the step starts from."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        total = torch.zeros(2, device=self.accelerator.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in batches:
                ratios = KTOTrainer._compute_kl_logps(self, self.model_wrapped, batch) - batch["ref_KL_logps"]
                total += torch.stack([ratios.float().sum(), torch.tensor(float(len(ratios)), device=total.device)])
        total = self.accelerator.reduce(total, "sum")
        self._kl = total[0] / total[1].clamp(min=1)
        return batches, items

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:  # noqa: ANN401
        """What TRL takes the reference from and averages: the same for all rows, so that the average is the global batch's."""
        return batch["ref_KL_logps"] + self._kl

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:  # noqa: ANN401
        both = torch.stack([inputs["label"].sum(), (~inputs["label"]).sum()]).float()
        liked: Any = self.accelerator.reduce(both, "sum")
        for side, count in zip(SIDES, liked.tolist(), strict=True):
            self._counts[side] += [count] if count else []
        return super()._compute_loss(model, inputs, return_outputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Weigh each micro-batch's mean reward by its answers: TRL weighs the micro-batches alike."""
        means = {}
        for side in SIDES:
            if found := self._metrics["train"].get(f"rewards/{side}"):
                pairs = list(zip(found, self._counts[side], strict=True))
                means[side] = sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
                self._metrics["train"][f"rewards/{side}"] = [means[side]]
            self._counts[side].clear()
        if len(means) == len(SIDES):
            self._metrics["train"]["rewards/margins"] = [means["chosen"] - means["rejected"]]
        super().log(logs, *args, **kwargs)


class _StartsAtReference(TrainerCallback):
    """At step 1 the policy must be the reference, on the answers and on the mismatched texts."""

    def __init__(self, beta: float, tolerance: float) -> None:
        self._beta, self._tolerance = beta, tolerance
        self.ratio: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: object) -> None:  # noqa: ANN401
        """Compare once, after the first step."""
        if state.global_step != 1 or not logs or "kl" not in logs:
            return
        ratios = [abs(logs[name]) / self._beta for name in ("rewards/chosen", "rewards/rejected") if name in logs]
        self.ratio = max(*ratios, abs(logs["kl"]))
        if not self.ratio <= self._tolerance:
            raise AlignError(
                f"KTO did not start at its reference: log-ratio {self.ratio:.4g} nats at the first step, where 0 (up to "
                f"{self._tolerance:g}) is due; the method changes the policy when it is set up, so merge the policy first"
            )


def run(spec: KtoSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on the answers of `inputs["data"]`, feedback or pairs taken apart; it is its own reference."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["data"], model=begin.model)
    encoded, rows = _answers(encoder, read_rows(inputs["data"], "train"), spec)
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    partners = mismatched([rows[i]["prompt_ids"] for i in order], spec.global_batch)
    others = [
        Text(rows[i]["prompt_ids"], rows[order[j]]["completion_ids"][: spec.max_length - len(rows[i]["prompt_ids"])])
        for i, j in zip(order, partners, strict=True)
    ]
    longest = max(len(text.prompt_ids) + len(text.completion_ids) for text in [*_texts(rows), *others])
    run.log(f"data: {len(rows)} answers, {encoded.truncated} of {encoded.total} rows cut at {spec.max_length} tokens")
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=longest, texts=1)
    cheap_head(run)
    asked = [{**rows[i], "KL_completion_ids": other.completion_ids} for i, other in zip(order, others, strict=True)]
    trainer = _trainer(spec, run, begin, batches, encoder, asked)
    used = sorted(set(order))
    moved = begin.how == "fresh" and soft_prompt(begin.model)
    with begin.model.disable_adapter() if moved else nullcontext():
        known = _reference(trainer, [*_texts(rows[i] for i in used), *others], batches.micro_batch, run)
    of_row = dict(zip(used, known, strict=False))
    trainer.train_dataset = Dataset.from_list(
        [
            {**row, "ref_logps": of_row[i], "ref_KL_logps": other}
            for row, i, other in zip(asked, order, known[len(used) :], strict=True)
        ]
    )
    width = torch.float32 if torch_float32(begin.model) and not trainer.args.bf16 else torch.bfloat16
    check = _StartsAtReference(spec.beta, inf if moved else TOLERANCE[width])
    trainer.add_callback(check)
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    liked = sum(row["label"] for row in rows)
    return {
        **row_metrics(encoded),
        **metrics,
        "answers_trained": len(rows),
        "liked": liked,
        "disliked": len(rows) - liked,
        "trained_tokens": sum(len(rows[i]["completion_ids"]) for i in order),
        "first_step_log_ratio": check.ratio,
    }


def _answers(encoder: Any, data: Sequence[dict[str, Any]], spec: KtoSpec) -> tuple[Encoded, list[dict[str, Any]]]:  # noqa: ANN401
    """What became of the rows, and the answers that are left, each with its label; both kinds are there."""
    if data and "liked" in data[0]:
        encoded = encode_answers(encoder, data, max_length=spec.max_length)
        rows = encoded.rows
    else:
        encoded = encode_pairs(encoder, data, max_length=spec.max_length)
        rows = [
            {"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"], "label": side == "chosen"}
            for row in encoded.rows
            for side in SIDES
        ]
    encoded.check(spec.dropped_budget, "train.parquet")
    liked = sum(row["label"] for row in rows)
    if liked in (0, len(rows)):
        which = "disliked" if liked else "liked"
        raise DataError(f"train.parquet: none of {len(rows)} answers is {which}, and KTO learns from both; give some of either")
    return encoded, rows


def mismatched(prompts: Sequence[Sequence[int]], batch: int) -> list[int]:
    """For each place the place, in its batch, of the answer that its prompt is matched with to estimate the KL.

    All answers of a batch move on by the same number of places, so each is used once: the smallest that gives the fewest prompts
    an answer to the very same prompt.

    >>> mismatched([[1], [1], [2], [2]], 4)
    [2, 3, 0, 1]
    """
    found: list[int] = []
    for first in range(0, len(prompts), batch):
        own = prompts[first : first + batch]
        clashes = {by: sum(own[i] == own[i - by] for i in range(len(own))) for by in range(1, len(own))}
        by = min(clashes, key=lambda by: (clashes[by], by))
        found += [first + (i - by) % len(own) for i in range(len(own))]
    return found


def _texts(rows: Any) -> list[Text]:  # noqa: ANN401  any iterable of rows
    return [Text(row["prompt_ids"], row["completion_ids"]) for row in rows]


def _trainer(spec: KtoSpec, run: Run, begin: Start, batches: Batches, encoder: Any, rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    """TRL refuses one row at a time, because its KL needs two; ours does not, so it is told of two and given one."""
    told = replace(batches, micro_batch=max(2, batches.micro_batch))
    with adapter_copy(begin.model):
        trainer = _Kto(
            model=begin.model,
            args=arguments(
                KTOConfig, spec, run, told, max_length=None, beta=spec.beta, loss_type="kto",
                desirable_weight=spec.desirable_weight, undesirable_weight=spec.undesirable_weight,
                precompute_ref_log_probs=True, disable_dropout=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=encoder.tokenizer,
            data_collator=DataCollatorForUnpairedPreference(pad_token_id=encoder.pad),
        )  # fmt: skip
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = batches.micro_batch
    return trainer


def _reference(trainer: Any, texts: Sequence[Text], size: int, run: Run) -> list[float]:  # noqa: ANN401
    """Summed log-probability (nats) of the answer of each text under the parent policy."""
    memory = run.work / REFERENCE
    accelerator = trainer.accelerator
    if memory.is_file() and len(known := json.loads(memory.read_text())) == len(texts):
        return known
    model = trainer.model.eval().to(accelerator.device)
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i].prompt_ids) + len(texts[i].completion_ids), i))
    chunks = [by_length[at : at + size] for at in range(0, len(texts), size)]
    chunks = chunks[accelerator.process_index :: accelerator.num_processes]
    found: dict[int, float] = {}
    for number, chunk in enumerate(chunks):
        batch = trainer.data_collator([{**texts[i]._asdict(), "label": True} for i in chunk])
        ids, mask, said = (batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask", "completion_mask"))
        labels = ids.masked_fill(said == 0, -100)
        with torch.no_grad(), accelerator.autocast():
            given = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        found |= dict(zip(chunk, given.log_probs.sum(dim=1).float().tolist(), strict=True))
        if accelerator.is_main_process:
            run.progress(Progress(number + 1, len(chunks), {"reference": 1.0}))
    model.train()
    if accelerator.num_processes > 1:
        parts: list[Any] = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(parts, found)
        found = {i: value for part in parts for i, value in part.items()}
    known = [found[i] for i in range(len(texts))]
    if accelerator.is_main_process:
        write_json(memory, [*known])
    return known
