"""Garbage collection: what no release, no plan's last run and no recent build needs."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from flows.console import out
from tasks.channels import channels, history
from tasks.core.errors import DataError
from tasks.core.files import held, locked, remove, tree
from tasks.core.lineage import Trace, trace
from tasks.core.store import MANIFEST, Artifact, Store
from tasks.review import questions


@dataclass(frozen=True)
class Waste:
    """Something nobody needs."""

    path: Path
    bytes: int
    why: str


def waste(store: Store, *, keep_days: float, now: float | None = None) -> list[Waste]:
    """Everything that may go, oldest first."""
    oldest = (now or time.time()) - keep_days * 86_400
    needed = _needed(store)
    found = [
        Waste(artifact.path, _size(artifact.path), "no release and no plan's last run needs it")
        for artifact in store.all()
        if artifact.key not in needed and (artifact.path / MANIFEST).stat().st_mtime < oldest
    ]
    for folder, why in ((".aside", "set aside as damaged or replaced"), (".work", "left by a build that never ended")):
        for path in sorted((store.root / folder).glob("*")):
            if path.stat().st_mtime < oldest:
                found.append(Waste(path, _size(path), why))
    return found


def _needed(store: Store) -> set[str]:
    """Keys reachable from any channel's history, the last run of each flow over each plan, and runs that wait for a person."""
    roots: list[Artifact] = []
    for name in channels(store):
        for entry in history(store, name):
            if artifact := store.find("release", entry["release"]):
                roots.append(artifact)
    last: dict[tuple[str, str], list[str]] = {}
    for record in sorted(store.folder("runs").glob("*.json"), key=lambda file: file.stat().st_mtime):
        fields = json.loads(record.read_text())
        refs = [step["artifact"] for step in fields.get("steps", {}).values() if step["artifact"]]
        whole = fields["status"] == "completed"  # a failed or lost run names only what it got to: it adds, and replaces nothing
        what = (fields["plan"]["name"], fields.get("flow", "align"))
        last[what] = refs if whole else [*last.get(what, []), *refs]
    waiting = [question.made_of for question in questions(store, late=True)]
    for ref in {ref for refs in (*last.values(), *waiting) for ref in refs}:
        if artifact := store.find(*ref.split("/", 1)):
            roots.append(artifact)
    keys: set[str] = set()

    def mark(traced: Trace) -> None:
        keys.add(traced.artifact.key)
        for below in traced.inputs.values():
            if isinstance(below, Trace):
                mark(below)

    for root in roots:
        mark(trace(store, root))
    return keys


def collect(store: Store, *, dry_run: bool, keep_days: float, json_output: bool) -> None:
    """Delete the waste, or with `dry_run` only list it."""
    if not dry_run and (busy := [lock.stem for lock in store.folder("runs").glob("*.lock") if held(lock)]):
        raise DataError(f"{store.root}: run {busy[0]} is going on and may need what looks like waste; wait for it")
    found = waste(store, keep_days=keep_days)
    if not dry_run:
        for item in found:
            # what is being built right now is younger than any limit, but its lock is asked all the same
            with locked(store.root / ".locks" / item.path.name):
                remove(item.path)
    if json_output:
        import typer

        rows = [{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in found]
        typer.echo(json.dumps({"deleted": not dry_run, "items": rows}, indent=2))
        return
    for item in found:
        out().print(f"{item.bytes / 2**20:10.1f} MiB  {item.path.relative_to(store.root)}  [dim]{item.why}[/]")
    total = sum(item.bytes for item in found) / 2**20
    out().print(
        f"{len(found)} items, {total:.1f} MiB {'could be' if dry_run else 'were'} deleted (kept: younger than {keep_days:g} days)"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in tree(path))
