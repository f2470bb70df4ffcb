"""`align estimate`: the table of what `flows.estimating` finds, for people and for machines."""

from collections.abc import Sequence
from typing import cast

from rich.table import Table

from flows.console import duration
from flows.estimating import Row, estimates
from flows.plan import Plan
from tasks.core.contract import Metrics
from tasks.core.errors import AlignError
from tasks.core.spec import Json

_PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "cache")


def table(name: str, rows: Sequence[Row]) -> Table:
    """Stages as rows, in GB."""
    shown = Table(title=f"{name}: memory in GB, time", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    probing = any(row.probed for row in rows)
    columns = ["stage", "rows", "libraries", *_PARTS, "total", "limit", "fits", "time", "known from"]
    for column in [*columns, *(("measured", "error", "tokens/s") if probing else ())]:
        words = column in ("stage", "fits", "known from")
        shown.add_column(column, justify="left" if words else "right", no_wrap=column != "known from")
    for row in rows:
        parts = [_gb(getattr(row.memory, part)) for part in ("libraries", *_PARTS)]
        known = "; ".join(filter(None, (row.tokens_from, row.rate_from)))
        cells = [row.stage, str(row.rows or "-"), *parts, _gb(row.memory.total), _gb(row.limit), _fits(row)]
        cells += [duration(row.seconds), known]
        if probing and row.probed:
            cells += [_gb(row.probed.peak), f"{100 * (row.error or 0):+.0f} %", f"{row.probed.tokens_per_second:,.0f}"]
        shown.add_row(*cells)
    return shown


def _gb(count: float) -> str:
    return "-" if not count else f"{count / 1e9:.2f}"


def _fits(row: Row) -> str:
    if row.fits:
        return "yes"
    return "no" if row.rows is None else f"no, {row.fitting} would" if row.fitting else "no, not one row"


def as_json(rows: Sequence[Row]) -> list[dict[str, Json]]:
    """The same for machines: bytes and seconds."""
    return [
        {
            "stage": row.stage,
            "state": row.state,
            "memory": {**vars(row.memory), "total": row.memory.total},
            "limit": row.limit,
            "fits": row.fits,
            "micro_batch": row.rows,
            "largest_micro_batch": row.fitting,
            "tokens": row.tokens,
            "tokens_from": row.tokens_from,
            "seconds": row.seconds,
            "rate_from": row.rate_from,
            "probed": cast(Metrics, dict(row.probed._asdict())) if row.probed else None,
            "error": row.error,
        }
        for row in rows
    ]


def show(plan: Plan, *, run_probe: bool, json_output: bool) -> None:
    """Print the estimates of `plan`."""
    from flows.console import out
    from flows.inspect import echo_json

    console = out()
    rows = estimates(plan, run_probe=run_probe, log=lambda line: None if json_output else console.print(line))
    if json_output:
        echo_json(as_json(rows))
        return
    if not rows:
        raise AlignError(f"{plan.name}: no stage of it loads a model")
    console.print(table(plan.name, rows))
