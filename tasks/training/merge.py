# pyright: basic
"""Merge a policy's adapters into its base, and certify that the outcome answers as the policy did.

Distances are over all prompt positions, in logits (largest, mean) and in nats (KL of the merged from the unmerged distribution).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from tasks.chain import check_merge
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import AlignError, DataError
from tasks.core.files import write_json
from tasks.core.spec import Json
from tasks.heads import FORMS, read_head, write_head
from tasks.merge import MergeSpec
from tasks.methods import METHODS, AnyMethod
from tasks.policy import MODEL, Link, PolicyRecord, read_record, write_record
from tasks.training.adapters import write_model
from tasks.training.data import Encoder, read_rows
from tasks.training.head_data import cut, rows_of
from tasks.training.models import Loaded, load
from tasks.training.predict import head_logits
from tasks.training.vision import encoder_for

_Prompt = tuple[list[int], list[str]]
"""tokens, and names of images"""
CERTIFICATE = "merge.json"
EFFECT_PROMPTS = 4
"""prompts on which the adapter is also switched off, to see how far it moves the logits"""


@dataclass
class Distance:
    """Running comparison of two models' logits."""

    largest: float = 0.0
    total: float = 0.0
    kl: float = 0.0
    agree: int = 0
    tokens: int = 0
    words: int = 1

    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Take in the logits of one prompt, (tokens, words) each."""
        gap = (new - old).abs()
        self.largest = max(self.largest, float(gap.max()))
        self.total += float(gap.sum(dtype=torch.float64))
        p, q = old.double().log_softmax(-1), new.double().log_softmax(-1)
        self.kl += float((q.exp() * (q - p)).sum())
        self.agree += int((old.argmax(-1) == new.argmax(-1)).sum())
        self.tokens, self.words = self.tokens + len(old), old.shape[1]


def run(spec: MergeSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `inputs["policy"]` as one plain model, compared on `inputs["prompts"]`."""
    record = read_record(inputs["policy"])
    if not record.adapters:
        raise DataError(f"{inputs['policy']}: this policy has no adapter to merge; leave the merge stage out")
    check_merge(*(cast(AnyMethod, METHODS[link.method].spec()) for link in record.chain if link.adapter))
    if record.task in FORMS:
        return _merge_head(spec, record, inputs, out, run)
    rows = sorted(read_rows(inputs["prompts"], "prompts"), key=lambda row: row["id"])[: spec.prompts]
    if not rows:
        raise DataError(f"{inputs['prompts']}: no prompts to compare on")
    encoder, texts, effect = _before(spec, inputs, rows, run)
    merged = load(inputs["policy"], run, merged=True)
    run.log(f"merged {', '.join(record.adapters)}; comparing on {len(texts)} prompts")
    distance = Distance()
    for i, (ids, pictures) in enumerate(texts):
        distance.add(load_file(_stored(run, i))["logits"], logits_of(merged.model, ids, encoder, pictures))
        _stored(run, i).unlink()
        run.progress(Progress(i + 1, len(texts), {"max_logit_distance": distance.largest}))
    return _write(spec, record, merged, distance, effect, len(texts), out)


def _merge_head(spec: MergeSpec, record: PolicyRecord, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """The same for a model with a task head, compared on held-out rows of `inputs["data"]`; its labels go along."""
    head = read_head(inputs["policy"])
    rows = sorted(read_rows(inputs["data"], "heldout"), key=lambda row: row["id"])[: spec.prompts]
    if not rows:
        raise DataError(f"{inputs['data']}: no held-out rows to compare on; hold more out")
    before = load(inputs["policy"], run)
    windows = cut(before.tokenizer, head, rows_of(head.kind, rows, "heldout.parquet")).windows[: spec.prompts]
    old = [head_logits(before.model, window, before.tokenizer, head) for window in windows]
    with before.model.disable_adapter():
        off = [head_logits(before.model, window, before.tokenizer, head) for window in windows[:EFFECT_PROMPTS]]
    effect = max(float((on - without).nan_to_num().abs().max()) for on, without in zip(old, off, strict=False))
    merged = load(inputs["policy"], run, merged=True)
    run.log(f"merged {', '.join(record.adapters)}; comparing on {len(windows)} windows of held-out rows")
    distance = Distance()
    for window, logits in zip(windows, old, strict=True):
        distance.add(logits, head_logits(merged.model, window, merged.tokenizer, head))
    write_head(out, head.model_copy(update={"key_mapping": {}}))  # the merged model has its own names
    return _write(spec, record, merged, distance, effect, len(windows), out)


def _write(
    spec: MergeSpec, record: PolicyRecord, merged: Loaded, distance: Distance, effect: float, texts: int, out: Path
) -> Metrics:
    """The merged model, its record and its certificate.  Raises AlignError where the merge is not faithful."""
    tolerance = spec.quantised_tolerance if record.quantization else spec.tolerance
    certificate = _certificate(distance, effect, tolerance, texts)
    write_model(out / MODEL, merged.model, merged.source)
    chain = (*record.chain, Link(stage="merge", method="merge"))
    write_record(out, record.model_copy(update={"chain": chain, "quantization": None}))
    write_json(out / CERTIFICATE, certificate)
    return certificate


def _before(spec: MergeSpec, inputs: Inputs, rows: list[dict[str, Any]], run: Run) -> tuple[Encoder, list[_Prompt], float]:
    """Store the unmerged logits of every prompt; return encoder and prompts, and how far the last adapter moves any logit."""
    policy_now = load(inputs["policy"], run)
    encoder = encoder_for(policy_now, inputs["prompts"], model=policy_now.model)
    texts: list[_Prompt] = []
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(row["prompt"]):
            raise DataError(f"prompt {row['id']}: the model cannot be asked this ({reason}); curate it away")
        ids = encoder.prompt(row["prompt"])
        whole = encoder.cuts_image(ids, spec.max_length)
        texts.append((ids if whole else ids[: spec.max_length], encoder.pictures(row["prompt"])))
    effect = 0.0
    for i, (ids, pictures) in enumerate(texts):
        logits = logits_of(policy_now.model, ids, encoder, pictures)
        save_file({"logits": logits}, _stored(run, i))
        if i < EFFECT_PROMPTS:
            with policy_now.model.disable_adapter():
                without = logits_of(policy_now.model, ids, encoder, pictures)
                effect = max(effect, float((logits - without).abs().max()))
    return encoder, texts, effect


def _certificate(distance: Distance, effect: float, tolerance: float, prompts: int) -> dict[str, Json]:
    """The numbers, rounded so that they are the same everywhere.  Raises AlignError where the merge is not faithful."""
    agreement = distance.agree / distance.tokens
    if not distance.largest <= tolerance:
        raise AlignError(
            f"merge: a logit moved by {distance.largest:.3g}, more than the tolerance {tolerance:g} (top-1 agreement "
            f"{agreement:.2%}); use the unmerged policy, or raise the tolerance"
        )
    if 0 < effect <= distance.largest:
        raise AlignError(
            f"merge: the adapter moves logits by up to {effect:.3g}, and the merged model is {distance.largest:.3g} away from "
            "the policy: the adapter was not merged, or is smaller than rounding"
        )
    return {
        "max_logit_distance": rounded(distance.largest),
        "mean_logit_distance": rounded(distance.total / (distance.tokens * distance.words)),
        "kl_nats_per_token": rounded(distance.kl / distance.tokens),
        "top1_agreement": round(agreement, 6),
        "adapter_effect": rounded(effect),
        "tolerance": tolerance,
        "prompts": prompts,
        "tokens": distance.tokens,
    }


def logits_of(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    ids: list[int],
    encoder: Encoder | None = None,
    pictures: Sequence[str] = (),
) -> torch.Tensor:
    """Logits at every token of a text, (tokens, words), float32, on the CPU; `encoder` shows the model its `pictures`."""
    ids_BT = torch.tensor([ids], device=next(model.parameters()).device)
    seen = encoder.seen(ids_BT, [pictures]) if encoder else {}
    with torch.no_grad():
        return model(input_ids=ids_BT, use_cache=False, **seen).logits[0].float().cpu()


def _stored(run: Run, number: int) -> Path:
    return run.work / f"logits-{number}.safetensors"


def rounded(value: float) -> float:
    """Two significant digits: what rounding leaves beyond them differs from machine to machine."""
    return float(f"{value:.2g}")
