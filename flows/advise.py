"""`align advise`: methods ranked for a need, with reasons, starting values and a plan to paste."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks import advice
from tasks.advice import Advice
from tasks.advice_rules import Need
from tasks.core.errors import SpecError
from tasks.core.spec import Json
from tasks.core.store import Artifact, Store
from tasks.machine import free_memory
from tasks.shapes import Shape, of_parameters

_DETAILED = 3
"""methods whose reasons are printed"""


def need_of(plan: Path | None, asked: Mapping[str, Any]) -> Need:
    """The need that the command line describes; what is left out comes from the plan, or from this machine.

    Raises SpecError for a choice that there is not, and where nothing says how large the model is.
    """
    hints = get_type_hints(Need)
    wishes = {name: asked[name] for name in ("task", "latency", "forgetting", "adapters", "device")}
    for name, value in wishes.items():
        if value not in (choices := get_args(hints[name])):
            raise SpecError(f"--{name} {value}: choose one of {', '.join(choices)}")
    if (wishes["latency"], wishes["adapters"]) == ("none", "many"):
        raise SpecError("--latency none --adapters many: adapters that are switched stay unmerged, which takes time; allow some")
    shape, rows = _planned(plan) if plan else (None, None)
    if asked["model_size"]:
        shape = of_parameters(advice.weights_of(asked["model_size"]))
    if shape is None:
        raise SpecError("nothing says how large the model is; give --model-size 7B, or a plan")
    memory = advice.bytes_of(asked["memory"]) if asked["memory"] else None
    if memory is None and wishes["device"] == "cuda":
        raise SpecError("--device cuda: say how much memory the GPU has, for example --memory 24GB")
    if memory is None:
        memory = free_memory()
    return Need(shape=shape, memory=memory, rows=asked["rows"] or rows or Need.rows, **wishes)


def _planned(path: Path) -> tuple[Shape, int | None]:
    """The model of a plan, and its rows of instructions where they are curated."""
    from flows.estimating import known
    from flows.loading import load

    return known(load(path))


def comparisons(store: Path) -> list[Artifact]:
    """Comparisons that were made here, oldest first."""
    return [artifact for artifact in Store(store).all() if artifact.kind == "comparison"] if store.is_dir() else []


def show(plan: Path | None, asked: Mapping[str, Any], store: Path, *, json_output: bool) -> None:
    """Print the ranking."""
    from flows.console import out
    from flows.inspect import echo_json

    need = need_of(plan, asked)
    ranked = advice.advise(need, comparisons(store))
    if json_output:
        echo_json(as_json(need, ranked))
        return
    _print(out(), need, ranked)


def _print(console: Console, need: Need, ranked: Sequence[Advice]) -> None:
    good = [one for one in ranked if not one.refused]
    console.print(
        f"{need.parameters / 1e9:.3g}B weights, {need.memory / 1e9:.3g} GB on {need.device}, {need.rows:,} rows, {need.task}, "
        f"latency {need.latency}, forgetting {need.forgetting}, adapters {need.adapters}\n"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("method", "score", "memory", "rows", "checkpointing", "learning rate", "size", "trains"):
        table.add_column(column, justify="left" if column in ("method", "size") else "right")
    for one in good:
        again = "on" if one.checkpointing else "off"
        cells = [f"{one.score:.1f}", f"{one.memory / 1e9:.1f} GB", str(one.micro_batch), again, f"{one.learning_rate:g}"]
        table.add_row(one.method.name, *cells, _size(one), f"{100 * one.share:.3g} %")
    console.print(table)
    for one in good[:_DETAILED]:
        console.print(Text(f"\n{one.method.name}", style="bold"))
        for reason in one.reasons:
            console.print(Text(f"  {reason.points:+.1f}  {reason.said}  [{reason.rests_on}]"))
    refused = [one for one in ranked if one.refused]
    if refused:
        console.print(Text("\nnot for this need", style="bold"))
    for one in refused:
        console.print(Text(f"  {one.method.name}: {'; '.join(one.refused)}"))
    if good:
        console.print(Text("\nto start with", style="bold"))
        console.print(Text(advice.fragment(good[0])))


def _size(one: Advice) -> str:
    fields = one.method.model_dump()
    return ", ".join(f"{name} {fields[name]:g}" for name in ("rank", "alpha", "length", "size") if name in fields)


def as_json(need: Need, ranked: Sequence[Advice]) -> dict[str, Json]:
    """The same for machines."""
    asked = {name: getattr(need, name) for name in ("parameters", "memory", "device", "rows", "task")}
    wishes = {name: getattr(need, name) for name in ("latency", "forgetting", "adapters")}
    best = next((one for one in ranked if not one.refused), None)
    methods = [
        {
            "method": one.method.model_dump(mode="json"),
            "stage": one.stage,
            "score": round(one.score, 3),
            "reasons": [reason._asdict() for reason in one.reasons],
            "refused": list(one.refused),
            "memory_bytes": one.memory,
            "micro_batch": one.micro_batch,
            "gradient_checkpointing": one.checkpointing,
            "learning_rate": one.learning_rate,
            "epochs": one.epochs,
            "max_length": one.max_length,
            "trainable_share": one.share,
        }
        for one in ranked
    ]
    return json.loads(
        json.dumps({"need": {**asked, **wishes}, "methods": methods, "plan": advice.fragment(best) if best else None})
    )
