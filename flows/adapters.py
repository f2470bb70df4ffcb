"""`align adapters` and `align compose`: the adapters of a store, and several of them put together as one."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import out
from flows.execute import watched
from flows.inspect import echo_json
from flows.plan_parts import Part, StorePlan, models_folder
from tasks.adapters import Adapter, adapters
from tasks.channels import channel, released_policy
from tasks.compose import COMPOSE, PART, ComposeSpec, check_parts
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import DataError, SpecError
from tasks.core.store import Artifact, Store


class ComposePlan(Part):
    """What is put together."""

    name: str
    policies: tuple[str, ...]
    """references of the parts, in the order of their weights"""
    spec: ComposeSpec
    store: StorePlan
    execution: Execution = Execution()

    def workshop(self) -> Workshop:
        """The store and the model cache it builds with."""
        return Workshop(Store(self.store.root, self.store.remote), models_folder(), self.execution)


def show(store: Store, base: str | None, *, json_output: bool) -> None:
    """Print every adapter, of `base` if one is named."""
    found = adapters(store, base)
    if json_output:
        echo_json([adapter.to_json() for adapter in found])
        return
    table = Table(box=None)
    for column in ("key", "base", "stage", "method", "shape", "trained", "size", "trained on", "made by"):
        table.add_column(
            column,
            overflow="fold",
            no_wrap=column in ("key", "method"),
            justify="right" if column in ("trained", "size") else "left",
        )
    for adapter in found:
        table.add_row(*map(Text, _row(adapter)))
    out().print(table if found else "no adapter yet; a plan with method lora, ia3 or another of `align methods` makes one")


def _row(adapter: Adapter) -> list[str]:
    shape = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in adapter.shape.items()
    )
    trained = adapter.trained if adapter.trained is not None else adapter.kept
    on = adapter.base if adapter.on == "base" else f"{adapter.base} ({adapter.on})"
    stage = adapter.stage if adapter.kind == "policy" else f"{adapter.stage} (reward model)"
    size = f"{adapter.bytes / 2**20:.1f} MiB"
    run = (adapter.made_by or "-").partition("(")[2].rstrip(")") or "-"
    return [adapter.key[:12], on, stage, adapter.method, shape, f"{trained:,}", size, adapter.data or "-", run]


def policy_named(store: Store, name: str) -> Artifact:
    """The policy that a channel points to, that a release is about, or whose key starts with `name`."""
    key = channel(store, name)
    artifact = store.at(f"release/{key}") if key else store.named(name)
    if artifact.kind == "release":
        return released_policy(store, artifact)
    if artifact.kind != "policy":
        raise SpecError(f"{name}: this is of kind {artifact.kind}; name a policy, a release or a channel")
    if damage := artifact.damage(deep=True):
        raise DataError(f"{name}: {damage}, so it is not used; run its plan again and it is rebuilt")
    return artifact


def compose(store: Store, parts: Sequence[str], *, json_output: bool, device: str, **spec: Any) -> None:  # noqa: ANN401
    """Put policies together: `KEY=WEIGHT` each."""
    if len(parts) < 2:
        raise SpecError(
            f"compose: {len(parts)} given, and it takes at least two; write each as KEY=WEIGHT, for example 3f2a91=0.7"
        )
    named, weights = zip(*map(_part, parts), strict=True)
    try:
        asked = ComposeSpec.model_validate(
            {"weights": weights, **{key: value for key, value in spec.items() if value is not None}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise SpecError(f"compose: {where}{first['msg'].removeprefix('Value error, ')}") from error
    policies = [policy_named(store, name) for name in named]
    check_parts(dict(zip(named, [policy.path for policy in policies], strict=True)), asked.how)
    shop = Workshop(store, models_folder())
    inputs = {f"{PART}{number}": policy for number, policy in enumerate(policies)}
    key = shop.identity(COMPOSE, asked, inputs).key
    artifact, result = store.find("policy", key), "up to date"
    if artifact is None:
        refs = tuple(store.ref(policy) for policy in policies)
        execution = Execution.model_validate({"device": device})
        plan = ComposePlan(
            name=f"compose-{key[:8]}", policies=refs, spec=asked, store=StorePlan(root=store.root), execution=execution
        )
        with watched(plan, Console(stderr=True, highlight=False) if json_output else out()):
            from flows.composing import composed

            artifact, result = store.at(composed(plan)), "composed"
    if json_output:
        echo_json({"result": result, "policy": artifact.key, **artifact.metrics})
        return
    out().print(f"[bold green]{result}[/]: policy {artifact.key[:12]}; talk to it: align chat {artifact.key[:12]}")


def _part(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    try:
        found = float(weight)
    except ValueError:
        found = math.nan
    if not (equals and name and math.isfinite(found)):
        raise SpecError(f"compose: {text}: write it as KEY=WEIGHT, for example 3f2a91=0.7")
    return name, found
