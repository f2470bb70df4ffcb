"""The stage `comparison`: everything that was measured of several fine-tuning methods, in one table.

It trains and times nothing.  Memory and speed of training stand in the manifests of the trained policies, not in their payloads,
which must not depend on the machine: this stage alone reads the manifests of its inputs.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from pydantic import Field, PositiveFloat

from evals.contrast import QUALITIES, Quality, median, pooled
from evals.intervals import finite
from evals.statistics import RESAMPLES, Estimate, Sample
from tasks.compare_plot import draw
from tasks.compare_report import markdown
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import AlignError, DataError
from tasks.core.files import tree, write_json
from tasks.core.lineage import opened
from tasks.core.spec import Json, Spec, to_json
from tasks.core.store import Artifact
from tasks.methods import Method
from tasks.policy import ADAPTERS, MODEL, read_record
from tasks.profile import PROFILE_FILE

COMPARISON_FILE = "comparison.json"
TEXT_FILE = "comparison.md"
PLOT_FILE = "comparison.png"
LEVEL = 0.95
"""of every interval"""
Cell: TypeAlias = dict[str, Json]
"""`value`, and where known low, high, n (items), clusters, per_seed; or `error`, a sentence"""


class Compared(Spec):
    """One method of the table."""

    label: str
    """its name in the table and in the names of its stages"""
    method: Method
    learning_rate: PositiveFloat
    """it was trained with"""
    failed: dict[str, str] = Field(default_factory=dict)
    """stage -> why it has no result"""


class ComparisonSpec(Spec):
    """Put everything that was measured of several methods into one table."""

    rows: tuple[Compared, ...] = Field(min_length=1)
    """in the order of the table"""
    seeds: tuple[int, ...] = (0,)
    """each method was trained with each of these"""
    reference: str
    """label of the method that the others are set against"""
    seed: int = Field(default=0, ge=0)
    """of the resampling"""
    resamples: int = Field(default=RESAMPLES, ge=1000)
    """per interval"""


class Column(NamedTuple):
    """What a number of the table is."""

    unit: str
    better: str
    """lower, higher, or empty where neither is"""
    meaning: str


COLUMNS: dict[str, Column] = {
    "trainable_parameters": Column("weights", "", "weights that training changes"),
    "trainable_share": Column("share of all weights", "", "trainable_parameters over the weights of the model with its adapter"),
    "peak_memory_bytes": Column("bytes", "lower", "largest memory of training: of the process on a CPU, of the GPU on one"),
    "tokens_per_second": Column("tokens per second", "higher", "tokens trained on, prompts included and padding not"),
    "answers": Column("ratio", "lower", "perplexity on held-out answers over the base's"),
    "preferences": Column("share of pairs", "higher", "held-out pairs whose better answer gained on the worse, against the base"),
    "forgetting": Column("ratio", "lower", "perplexity on general text over the base's: above 1 is forgetting"),
    "decode_unmerged": Column("ratio", "lower", "time per written token over the base's, with the adapter beside the model"),
    "decode_merged": Column("ratio", "lower", "the same with the adapter merged into the model"),
    "prefill_unmerged": Column("ratio", "lower", "time to read the prompt over the base's, with the adapter beside the model"),
    "prefill_merged": Column("ratio", "lower", "the same with the adapter merged into the model"),
    "use_memory_bytes": Column("bytes", "lower", "largest memory that the trained policy takes in use, weights included"),
    "disk_bytes": Column("bytes", "lower", "what was trained, on disk: the adapter, or the whole model"),
    "merge_logit_distance": Column("logits", "lower", "largest distance of any logit, merged from unmerged, over the prompts"),
}  # fmt: skip


def comparison(spec: ComparisonSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write comparison.json, .md and .png.  Inputs: `part` says how they are called; what is missing is an empty cell."""
    rows: list[dict[str, Json]] = []
    for row in spec.rows:
        run.log(f"{row.label}: collecting")
        rows.append(_row(row, spec, inputs))
    record: dict[str, Json] = {
        "against": "base",
        "reference": spec.reference,
        "level": LEVEL,
        "seeds": list(spec.seeds),
        "resampling": {"seed": spec.seed, "resamples": spec.resamples},
        "columns": {name: dict(column._asdict()) for name, column in COLUMNS.items()},
        "qualities": {name: {"title": q.title, "better": q.better, "neutral": q.neutral} for name, q in QUALITIES.items()},
        "base": _base(spec, inputs),
        "rows": [*rows],
        "leaders": {name: _leaders(name, quality, rows, spec, inputs) for name, quality in QUALITIES.items()},
        "notes": [*_notes(spec, inputs)],
    }
    write_json(out / COMPARISON_FILE, record)
    (out / TEXT_FILE).write_text(markdown(record, PLOT_FILE), encoding="utf-8")
    draw(record, out / PLOT_FILE)
    failed = sum(bool(row.failed) for row in spec.rows)
    return {"methods": len(rows), "failed": failed, **_headline(record)}


def part(what: str, label: str, seed: int) -> str:
    """Name of an input: `what` is sft, scores, merge or profile; the base's scores are `scores/base`.

    >>> part("sft", "lora", 0)
    'sft/lora/0'
    """
    return f"{what}/{label}/{seed}"


def _row(row: Compared, spec: ComparisonSpec, inputs: Inputs) -> dict[str, Json]:
    cells: dict[str, Json] = {}
    trained = [opened(inputs[name]) for seed in spec.seeds if (name := part("sft", row.label, seed)) in inputs]
    cells |= _training(trained)
    for name, quality in QUALITIES.items():
        per_seed = _samples(quality.sample, row.label, spec, inputs)
        cells[name] = _estimated(per_seed, spec, runs=True) if per_seed else None
    cells |= _use(inputs.get(part("profile", row.label, spec.seeds[0])))
    if merged := inputs.get(part("merge", row.label, spec.seeds[0])):
        cells["merge_logit_distance"] = {"value": opened(merged).metrics["max_logit_distance"]}
    return {
        "label": row.label,
        "method": to_json(row.method),
        "learning_rate": row.learning_rate,
        "cells": {name: cells.get(name) for name in COLUMNS},
        "against_reference": _against(row.label, spec.reference, spec, inputs),
        "failed": dict(row.failed),
    }


def _training(trained: Sequence[Artifact]) -> dict[str, Json]:
    """Cells of what training took: means over the seeds, for memory the largest."""
    if not trained:
        return {}
    first = trained[0].metrics
    peaks = [_number(policy.metrics.get("peak_gpu_bytes") or policy.metrics["peak_rss_bytes"]) for policy in trained]
    speeds = [_number(policy.metrics["tokens_per_second"]) for policy in trained]
    return {
        "trainable_parameters": {"value": first["trainable_parameters"]},
        "trainable_share": {"value": first["trainable_share"]},
        "peak_memory_bytes": _of_seeds(peaks, max),
        "tokens_per_second": _of_seeds(speeds, fmean),
        "disk_bytes": {"value": _disk(trained[0].path)},
    }


def _of_seeds(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> Cell:
    cell: Cell = {"value": of(values)}
    return cell if len(values) == 1 else {**cell, "per_seed": [*values]}


def _disk(policy: Path) -> int:
    """Bytes of what the last training stage left."""
    adapter = read_record(policy).chain[-1].adapter
    return sum(file.stat().st_size for file in tree(policy / ADAPTERS / adapter if adapter else policy / MODEL))


def _use(profile: Path | None) -> dict[str, Json]:
    """Cells of what use takes: medians of ratios within a round."""
    if profile is None:
        return {}
    found: dict[str, Any] = json.loads((profile / PROFILE_FILE).read_text(encoding="utf-8"))
    cells: dict[str, Json] = {"use_memory_bytes": {"value": found["memory_bytes"]["unmerged"]}}
    for who in ("unmerged", "merged"):
        if who in found["memory_bytes"]:
            for what in ("decode", "prefill"):
                ratios = [times[who][what] / times["base"][what] for times in found["rounds"]]
                middle = median(ratios, LEVEL)
                cells[f"{what}_{who}"] = {"value": middle.value, "low": middle.low, "high": middle.high, "n": middle.items}
    return cells


def _base(spec: ComparisonSpec, inputs: Inputs) -> dict[str, Json]:
    """What the base takes in use, in seconds and bytes, from the first profile there is: what ratios are ratios of."""
    for row in spec.rows:
        if profile := inputs.get(part("profile", row.label, spec.seeds[0])):
            found: dict[str, Any] = json.loads((profile / PROFILE_FILE).read_text(encoding="utf-8"))
            seconds = {
                what: median([times["base"][what] for times in found["rounds"]], LEVEL).value for what in ("decode", "prefill")
            }
            kept: dict[str, Json] = {name: found[name] for name in ("device", "prompt_tokens", "new_tokens")}
            return {**kept, "use_memory_bytes": found["memory_bytes"]["base"], **{f"{k}_seconds": v for k, v in seconds.items()}}
    return {}


def _samples(
    of: Callable[[Mapping[str, Path]], Sample], label: str, spec: ComparisonSpec, inputs: Inputs, other: str | None = None
) -> list[Sample]:
    """Samples of the seeds for which all scores are there; `other`: a second method, taken with the same seed."""
    found: list[Sample] = []
    for seed in spec.seeds:
        names = {"base": "scores/base", "candidate": part("scores", label, seed)}
        names |= {"parent": part("scores", other, seed)} if other else {}
        if all(name in inputs for name in names.values()):
            found.append(of({subject: inputs[name] for subject, name in names.items()}))
    return found


def _estimated(samples: Sequence[Sample], spec: ComparisonSpec, *, runs: bool = False) -> Cell:
    try:
        estimate = _estimate(samples, spec, LEVEL)
    except DataError as error:
        return {"error": str(error)}
    cell: Cell = {"value": estimate.value, "low": finite(estimate.low), "high": finite(estimate.high)}
    cell |= {"n": estimate.items, "clusters": estimate.clusters}
    if runs and len(samples) > 1:
        cell["per_seed"] = [float(s.of_totals(*(column.sum() for column in s.columns))) for s in samples]
    return cell


def _estimate(samples: Sequence[Sample], spec: ComparisonSpec, level: float) -> Estimate:
    return pooled(samples).estimate(level, seed=spec.seed, resamples=spec.resamples)


def _against(label: str, other: str, spec: ComparisonSpec, inputs: Inputs) -> dict[str, Json]:
    """Paired contrasts of `label` with `other`; empty for the method itself and where one of them was not measured."""
    if label == other:
        return {}
    found = {name: _samples(quality.contrast, label, spec, inputs, other) for name, quality in QUALITIES.items()}
    return {name: _estimated(samples, spec) for name, samples in found.items() if samples}


def _leaders(name: str, quality: Quality, rows: Sequence[Mapping[str, Any]], spec: ComparisonSpec, inputs: Inputs) -> Cell:
    """The best method by one quality, and those that the data do not tell from it, at a level corrected for their number."""
    cells: dict[str, Any] = {row["label"]: row["cells"][name] for row in rows}
    values: dict[str, float] = {label: cell["value"] for label, cell in cells.items() if cell and "value" in cell}
    if len(values) < 2:
        return {"best": None, "as_good": []}
    first = (min if quality.better == "lower" else max)(values, key=lambda label: values[label])
    level = 1 - (1 - LEVEL) / (len(values) - 1)
    as_good: list[Json] = []
    for label in values:
        samples = _samples(quality.contrast, first, spec, inputs, label) if label != first else []
        if label != first and not (samples and _sure(quality, samples, spec, level)):
            as_good.append(label)
    return {"best": first, "as_good": as_good}


def _sure(quality: Quality, samples: Sequence[Sample], spec: ComparisonSpec, level: float) -> bool:
    try:
        return quality.wins(_estimate(samples, spec, level))
    except DataError:
        return False


def _notes(spec: ComparisonSpec, inputs: Inputs) -> list[str]:
    """What a reader must know before comparing: were all trained under the same conditions?"""
    trained = {
        (row.label, seed): opened(inputs[name])
        for row in spec.rows
        for seed in spec.seeds
        if (name := part("sft", row.label, seed)) in inputs
    }
    notes: list[str] = []
    for what, of in _CONDITIONS.items():
        kinds: dict[str, list[str]] = {}
        for (label, _), policy in trained.items():
            kinds.setdefault(of(policy), []).append(label)
        if len(kinds) > 1:
            said = "; ".join(f"{kind} for {', '.join(dict.fromkeys(labels))}" for kind, labels in sorted(kinds.items()))
            notes.append(f"Not all were trained with the same {what}, so memory and speed do not compare: {said}.")
    if overlapping := _overlapping(list(trained.values())):
        notes.append(
            f"Some were trained at the same time on one machine ({overlapping}), which slows each: speeds compare only roughly."
        )
    return notes


_CONDITIONS: dict[str, Callable[[Artifact], str]] = {
    "machine": lambda policy: _machine(policy.provenance["machine"]),
    "micro-batch": lambda policy: f"{policy.metrics['micro_batch']} x {policy.metrics['processes']} processes",
    "version of torch": lambda policy: str(_dict(policy.provenance["versions"]).get("torch")),
}


def _overlapping(trained: Sequence[Artifact]) -> str:
    """Two of `trained` that were trained at the same time, by the ends and lengths of their builds; or nothing."""
    from datetime import datetime, timedelta

    spans: list[tuple[datetime, datetime, str]] = []
    for policy in trained:
        end = datetime.fromisoformat(policy.created)
        spans.append((end - timedelta(seconds=_number(policy.provenance["seconds"])), end, str(policy.metrics["method"])))
    slack = timedelta(seconds=5)  # ends are whole seconds, and a build's first seconds are imports
    for one, other in combinations(sorted(spans, key=lambda span: span[0]), 2):
        if other[0] + slack < one[1]:
            return f"{one[2]} and {other[2]}"
    return ""


def _headline(record: Mapping[str, Any]) -> Metrics:
    best: dict[str, Any] = record["leaders"]["answers"]
    return {"best_answers": best["best"], "not_told_from_it": len(best["as_good"])}


def _machine(record: Json) -> str:
    return f"{_dict(record)['system']}, {_dict(record)['cores']} cores"


def _dict(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise AlignError(f"a manifest holds {value!r} where a mapping belongs")
    return value


def _number(value: Json) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"a manifest holds {value!r} where a number belongs; build that artifact again")
    return value


COMPARISON = Stage("comparison", 3, "comparison", comparison)
"""inputs: scores/base; sft, scores, merge, profile of each method as named by `part`"""
