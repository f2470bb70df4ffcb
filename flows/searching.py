"""`align search` at the terminal: from the store where that is enough, else the flow; then the table and the winner's plan."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.console import duration, out
from flows.execute import watched
from flows.explain import Explain, Step
from flows.plan import Plan, load
from flows.search import search, winner, write_winner
from tasks.core.store import Artifact
from tasks.search import SEARCH_FILE


class _Missing(Exception):
    """Something is still to be built."""


def execute(path: Path, overrides: Sequence[str], out_path: Path | None, *, json_output: bool) -> None:
    """Search, print every trial, and write the winner as a plan."""
    started = time.monotonic()
    plan = load(path, overrides)
    console = Console(stderr=True, highlight=False) if json_output else out()
    found, how = look(plan), "up to date"
    if found is None:
        with watched(plan, console):
            from flows.search_flow import search as run

            run(plan)
        found, how = look(plan), "searched"
    assert found is not None
    record = _record(found)
    written = _write(path, overrides, plan, record, out_path)
    if json_output:
        import typer

        typer.echo(_json(record, found, written))
        return
    console.print(table(record))
    console.print(f"[bold green]{how}[/]: {_said(record, written)}, in {duration(time.monotonic() - started)}")


def look(plan: Plan) -> Artifact | None:
    """The summary of this search, if everything it needs is in the store."""
    explained = Explain(plan.workshop())

    def read(step: Step) -> Path:
        if step.artifact is None:
            raise _Missing
        return step.artifact.path

    try:
        return search(plan, explained, read).artifact
    except _Missing:
        return None


def _record(found: Artifact) -> dict[str, Any]:
    import json

    return json.loads((found.path / SEARCH_FILE).read_text(encoding="utf-8"))


def _write(path: Path, overrides: Sequence[str], plan: Plan, record: dict[str, Any], out_path: Path | None) -> Path | None:
    changed = winner(plan, record)
    if changed is None:
        return None
    target = out_path or path.with_name(f"{path.stem}-found.yaml")
    write_winner(path, overrides, changed, target)
    return target


def _said(record: dict[str, Any], written: Path | None) -> str:
    if written is None:
        return "the plan's own method stays the best"
    row = next(row for row in record["trials"] if row["name"] == record["winner"])
    apart = row["difference"]
    sure = "clearly apart from" if apart["real"] else "not told apart from"
    return f"{row['name']} ({row['method']['name']}) wins, {sure} the plan's own; written as {written}"


def _json(record: dict[str, Any], found: Artifact, written: Path | None) -> str:
    import json

    return json.dumps({**record, "artifact": f"{found.kind}/{found.key}", "plan": str(written) if written else None})


def table(record: dict[str, Any]) -> Any:  # noqa: ANN401  a rich table
    """Every trial, the best first."""
    from rich.table import Table

    shown = Table(box=None, title=f"{record['metric']}, {record['better']} is better", title_justify="left")
    for column in ("", "trial", "method", "learning rate", "steps", "value", "interval", "less own"):
        shown.add_column(column, justify="right" if column in ("learning rate", "steps", "value") else "left")
    for row in record["trials"]:
        method = ", ".join(f"{k} {v}" if k != "name" else str(v) for k, v in row["method"].items())
        mark = "★" if row["name"] == record["winner"] else "✘" if row["failed"] else ""
        if row["value"] is None:
            shown.add_row(
                mark, row["name"], method, f"{row['learning_rate']:.3g}", str(row["steps"]), "", row["failed"] or "", ""
            )
            continue
        low, high = row["interval"]
        apart = row["difference"]
        less = f"{apart['value']:+.4g} [{apart['interval'][0]:+.4g}, {apart['interval'][1]:+.4g}]" if apart else ""
        cells = (f"{row['learning_rate']:.3g}", str(row["steps"]), f"{row['value']:.4g}", f"[{low:.4g}, {high:.4g}]", less)
        shown.add_row(mark, row["name"], method, *(cell.replace("[", "\\[") for cell in cells))
    return shown
