"""A comparison for people: markdown, the terminal, plain rows.  All read the dict of comparison.json and decide nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Group

Record: TypeAlias = Mapping[str, Any]
_NONE = "-"


def share(value: float) -> str:
    """A share in percent, small ones with as many digits as they need.

    >>> [share(x) for x in (1.0, 0.0345, 0.000123)]
    ['100 %', '3.45 %', '0.0123 %']
    """
    return f"{100 * value:.3g} %"


def size(value: float) -> str:
    """Bytes as people say them.

    >>> [size(x) for x in (900, 3_500_000, 5_000_000_000)]
    ['900 B', '3.3 MiB', '4.66 GiB']
    """
    if value >= 2**30:
        return f"{value / 2**30:.2f} GiB"
    if value >= 2**20:
        return f"{value / 2**20:.1f} MiB"
    return f"{value / 2**10:.1f} KiB" if value >= 2**10 else f"{value:.0f} B"


def added(value: float) -> str:
    """A ratio of times as what it adds.

    >>> [added(x) for x in (1.0, 1.234, 0.98)]
    ['+0 %', '+23 %', '-2 %']
    """
    percent = round(100 * (value - 1))
    return f"{percent:+d} %" if percent else "+0 %"


def _speed(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _small(value: float) -> str:
    return f"{value:.2g}"


MAIN: dict[str, tuple[str, Callable[[float], str]]] = {
    "trainable_share": ("trainable", share),
    "peak_memory_bytes": ("peak memory", size),
    "tokens_per_second": ("tokens/s", _speed),
    "answers": ("held-out answers", _number),
    "preferences": ("preferences", _number),
    "forgetting": ("forgetting", _number),
    "decode_unmerged": ("added latency", added),
    "decode_merged": ("merged", added),
    "disk_bytes": ("on disk", size),
}
"""columns of the table: cell -> title and how its numbers are written"""
USE: dict[str, tuple[str, Callable[[float], str]]] = {
    "decode_unmerged": ("per token", added),
    "prefill_unmerged": ("reading the prompt", added),
    "decode_merged": ("per token, merged", added),
    "prefill_merged": ("reading the prompt, merged", added),
    "use_memory_bytes": ("memory in use", size),
    "merge_logit_distance": ("merge moves a logit by", _small),
}


def rows(record: Record) -> list[dict[str, str]]:
    """The table as plain text, for example for a Prefect table artifact."""
    found: list[dict[str, str]] = []
    for row in record["rows"]:
        line = {"method": row["label"], "learning rate": f"{row['learning_rate']:g}"}
        line |= {title: _cell(row["cells"][name], write) for name, (title, write) in MAIN.items()}
        found.append(line | ({"failed": reasons(row)} if any(row["failed"] for row in record["rows"]) else {}))
    return found


def reasons(row: Mapping[str, Any]) -> str:
    """Why a method has empty cells, a sentence a stage."""
    return "; ".join(f"{stage}: {why}" for stage, why in row["failed"].items())


def reading(record: Record) -> list[str]:
    """How to read the table, and what it says, a sentence each."""
    base = record["base"]
    said = [
        "Held-out answers: perplexity over that of the base, lower is better.  Preferences: share of held-out pairs whose better "
        "answer gained on the worse one, relative to the base; 0.5 is no change, higher is better.  Forgetting: perplexity on "
        "general text over that of the base; above 1 is forgetting.",
        f"In brackets: {record['level']:.0%} intervals, over held-out items for quality and over rounds for latency. Overlapping "
        "intervals do not mean equal: the paired differences below decide.",
        f"Added latency: time per written token over the base's{_timed(base)}, adapter beside the model, and merged into it.",
    ]
    if len(record["seeds"]) > 1:
        said.append(f"Trained with seeds {', '.join(map(str, record['seeds']))}: braces show the lowest and highest of them.")
    return [*said, *(_leader(record, name) for name in record["qualities"]), *record["notes"]]


def markdown(record: Record, plot: str) -> str:
    """The whole comparison; `plot` is where its picture lies."""
    parts = [
        f"# {len(record['rows'])} fine-tuning methods compared",
        _table(_marked(record, rows(record))),
        f"![held-out answers against peak memory of training]({plot})",
        "\n".join(f"- {_escaped(sentence)}" for sentence in reading(record) if sentence),
    ]
    if contrasts := _contrasts(record):
        parts += [f"## Differences from `{record['reference']}`", _table(contrasts)]
        parts.append(
            "Paired, item by item. Perplexity over the reference's (1 is equal, lower is better); for preferences the "
            "difference in share of pairs (0 is equal, higher is better). **Bold**: the interval excludes equal."
        )
    parts += ["## In use", _table(_lines(record, USE))]
    return "\n\n".join(parts) + "\n"


def table(record: Record) -> "Group":
    """The table for a rich console, with the reasons of what failed below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    lines = _lines(record, MAIN, brief=True)
    for title in lines[0]:
        shown.add_column(title, justify="left" if title == "method" else "right")
    best = _best(record)
    for row, line in zip(record["rows"], lines, strict=True):
        styles = {title: "bold green" for name, (title, _) in MAIN.items() if best.get(name) == row["label"]}
        shown.add_row(
            *(Text(text, style=styles.get(title, "")) for title, text in line.items()), style="red" if row["failed"] else ""
        )
    failed = [Text(f"✘ {row['label']}: {reasons(row)}", style="red") for row in record["rows"] if row["failed"]]
    sentences = [*(_leader(record, name) for name in record["qualities"]), *record["notes"]]
    return Group(shown, *failed, *(Text(sentence) for sentence in sentences if sentence))


def _lines(
    record: Record, columns: Mapping[str, tuple[str, Callable[[float], str]]], *, brief: bool = False
) -> list[dict[str, str]]:
    """A row for each method; `brief` leaves out the intervals of latency, and what the seeds gave."""
    lines: list[dict[str, str]] = []
    for row in record["rows"]:
        line = {"method": row["label"]}
        for name, (title, write) in columns.items():
            cell = row["cells"][name]
            if brief and cell:
                kept = ("value", "low", "high") if name in record["qualities"] else ("value",)
                cell = {key: cell[key] for key in kept if key in cell}
            line[title] = _cell(cell, write)
        lines.append(line)
    return lines


def _cell(cell: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    if cell is None or cell.get("value") is None:
        return _NONE
    text = write(cell["value"])
    if "low" in cell:
        low, high = ("?" if cell[end] is None else write(cell[end]) for end in ("low", "high"))
        text += f" [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"
    if "per_seed" in cell:
        text += f" {{{write(min(cell['per_seed']))}, {write(max(cell['per_seed']))}}}"
    return text


def _best(record: Record) -> dict[str, str]:
    """Quality -> the method that is better than every other, where the data say so."""
    return {name: leader["best"] for name, leader in record["leaders"].items() if leader["best"] and not leader["as_good"]}


def _marked(record: Record, lines: list[dict[str, str]]) -> list[dict[str, str]]:
    best = _best(record)
    for row, line in zip(record["rows"], lines, strict=True):
        for name, label in best.items():
            if label == row["label"]:
                line[MAIN[name][0]] = f"**{line[MAIN[name][0]]}**"
    return lines


def _leader(record: Record, name: str) -> str:
    leader, title = record["leaders"][name], record["qualities"][name]["title"]
    if leader["best"] is None:
        return ""
    if not leader["as_good"]:
        return f"{title.capitalize()}: {leader['best']} is better than every other method."
    return (
        f"{title.capitalize()}: {leader['best']} has the best value; these data do not tell it from {_listed(leader['as_good'])}."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _contrasts(record: Record) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for row in record["rows"]:
        if cells := row["against_reference"]:
            line = {"method": row["label"]}
            for name, quality in record["qualities"].items():
                cell = cells.get(name)
                text = _cell(cell, lambda value: f"{value:+.3f}" if quality["neutral"] == 0 else _number(value))  # noqa: B023
                sure = cell and "low" in cell and _excludes(cell, quality["neutral"])
                line[quality["title"]] = f"**{text}**" if sure else text
            found.append(line)
    return found


def _excludes(cell: Mapping[str, Any], number: float) -> bool:
    """Whether the interval does not hold `number`; an end that is not known excludes nothing."""
    return (cell["low"] is not None and cell["low"] > number) or (cell["high"] is not None and cell["high"] < number)


def _timed(base: Mapping[str, Any]) -> str:
    if not base:
        return ""
    seconds = 1000 * base["decode_seconds"]
    return f" ({seconds:.0f} ms after {base['prompt_tokens']} tokens, one text at a time, {base['device']})"


def _table(lines: Sequence[Mapping[str, str]]) -> str:
    titles = list(lines[0])
    body = [titles, ["---", *["---:"] * (len(titles) - 1)], *([_escaped(line[title]) for title in titles] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
