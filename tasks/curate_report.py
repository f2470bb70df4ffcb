"""The report of a curation: the row equation, counts by rule and source, lengths, the length baseline; as JSON and markdown."""

from collections.abc import Sequence
from typing import cast

from tasks.core.contract import Metrics
from tasks.core.spec import Json
from tasks.core.sql import Database

_EQUATION = (
    "A record is what a source counts: a line, an element, a row, a paragraph. "
    "Records read = records kept + records in quarantine. A record is kept when at least one row came of it; "
    "what was refused of a kept record is listed as dropped, beside the equation."
)

_COUNTS = {"labelled": "label_counts", "feedback": "liked_counts"}
"""kind -> the check that counts its labels"""


def collect(database: Database, kind: str, singular: str, metrics: Metrics, layouts: dict[str, Json]) -> dict[str, Json]:
    """Everything the report says."""
    for name in ("reasons", "source_counts", f"{singular}_lengths"):
        database.build(f"checks/{name}")
    report: dict[str, Json] = {
        "kind": kind,
        "equation": _EQUATION,
        "metrics": metrics,
        "rules": _table(database, "reasons", ("stage", "rule", "records", "items")),
        "sources": _table(database, "source_counts", ("source", "shape", "rows_in", "rows_kept", "rows_quarantined")),
        "layouts": layouts,
        "lengths": _table(database, f"{singular}_lengths", ("field", "smallest", "middle", "high", "largest")),
        "examples": _examples(database),
    }
    if kind in _COUNTS:
        report["labels"] = _table(database, _COUNTS[kind], ("label", "train", "heldout"))
    return report


def top_reasons(database: Database) -> str:
    """The three most frequent reasons, for an error: `empty side (12), tie (3)`."""
    database.build("checks/reasons")
    rows = database.rows("select rule, records from reasons where records > 0 limit 3")
    return ", ".join(f"{rule} ({count})" for rule, count in rows)


def first_refusal(database: Database) -> str:
    """Where the first refused record is and why: `raw.jsonl:3: no answer`."""
    return str(database.rows("select source || ':' || line || ': ' || reason from quarantine order by place limit 1")[0][0])


def summary(report: dict[str, Json]) -> str:
    """One line for the log."""
    metrics = cast(Metrics, report["metrics"])
    read, kept, refused = metrics["rows_in"], metrics["rows_kept"], metrics["rows_quarantined"]
    return f"{report['kind']}: {read} records read, {kept} kept, {refused} in quarantine"


def markdown(report: dict[str, Json]) -> str:
    """The report for people."""
    metrics = cast(Metrics, report["metrics"])
    parts = [f"# Curated {report['kind']}", _headline(metrics), _warnings(report)]
    parts += ["## Sources", _markdown_table(_sources(report), ("source", "file", "schema", "read", "kept", "quarantine"))]
    if report["rules"]:
        head = ("stage", "reason", "records in quarantine", "items dropped of kept records")
        parts += ["## What was refused", _markdown_table(_rows(report, "rules"), head)]
        parts += [
            "One example of each, as `source:line`:",
            _markdown_table(_rows(report, "examples"), ("reason", "where", "raw text")),
        ]
    parts += [
        "## Lengths in characters",
        _markdown_table(_rows(report, "lengths"), ("", "smallest", "median", "95 %", "largest")),
    ]
    if "labels" in report:
        parts += ["## Labels", _markdown_table(_rows(report, "labels"), ("label", "to train on", "held out"))]
    if "longer_chosen_share" in metrics:
        share, extra = float(cast(float, metrics["longer_chosen_share"])), float(cast(float, metrics["mean_extra_chars"]))
        parts += [
            "## The length baseline",
            f'"The longer answer wins" is right in **{share:.1%}** of the pairs (a draw counts half); the chosen answer has '
            f"{extra:+.0f} characters on average. A reward model that knows more than length beats {max(share, 1 - share):.1%}.",
        ]
    parts += ["## How this is counted", str(report["equation"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(metrics: Metrics) -> str:
    read, kept, refused = (int(cast(int, metrics[name])) for name in ("rows_in", "rows_kept", "rows_quarantined"))
    lines = [f"**{read:,}** records read = **{kept:,}** kept + **{refused:,}** in quarantine ({refused / read:.1%})."]
    if "train" in metrics:
        lines.append(
            f"Rows: **{metrics['train']:,}** to train on and **{metrics['heldout']:,}** held out, "
            f"in {metrics['conversations']:,} conversations; no conversation is on both sides."
        )
    if metrics["dropped"]:
        lines.append(f"{metrics['dropped']:,} items of kept records were dropped.")
    return " ".join(lines)


def _warnings(report: dict[str, Json]) -> str:
    metrics = cast(Metrics, report["metrics"])
    empty = [name for name in ("train", "heldout") if metrics.get(name) == 0]
    if not empty:
        return ""
    return f"> **Careful:** there is no row in {' and '.join(empty)}; there are too few conversations for this share and seed."


def _sources(report: dict[str, Json]) -> list[Sequence[Json]]:
    layouts = cast(dict[str, Json], report["layouts"])
    return [(row[0], layouts.get(str(row[0]), ""), *row[1:]) for row in _rows(report, "sources")]


def _examples(database: Database) -> Json:
    """The first record of each reason, cut short."""
    rows = database.rows(
        "select split_part(reason, ': ', 1) as rule, arg_min(source || ':' || line, place), arg_min(left(raw, 160), place) "
        "from quarantine group by rule order by min(place)"
    )
    return [dict(zip(("rule", "where", "raw"), cast(Sequence[Json], row), strict=True)) for row in rows]


def _table(database: Database, name: str, columns: Sequence[str]) -> list[Json]:
    rows = database.rows(f'select {", ".join(columns)} from "{name}"')
    return [dict(zip(columns, cast(Sequence[Json], row), strict=True)) for row in rows]


def _rows(report: dict[str, Json], name: str) -> list[Sequence[Json]]:
    return [list(cast(dict[str, Json], row).values()) for row in cast(list[Json], report[name])]


def _markdown_table(rows: Sequence[Sequence[Json]], head: Sequence[str]) -> str:
    numeric = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    lines = [_line(head), _line(["---:" if number else "---" for number in numeric])]
    return "\n".join(lines + [_line([_cell(value) for value in row]) for row in rows])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Json) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    return text.replace("<", "&lt;")
