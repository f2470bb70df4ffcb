"""A verdict for people: markdown, the terminal, and plain rows.  All read the dict of `verdict.json` and decide nothing.

`verdict.json` holds verdict, reasons (sentences), gates (`Judgement.row`), measured (`gates.measured`), seed and resamples; where
a gate is against the champion also champion (keys of its release and policy, or null) and not_judged (the gates that found none).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from evals.gates import percent, probability, shown

if TYPE_CHECKING:
    from rich.console import Group

Row: TypeAlias = Mapping[str, Any]
MARKS = {"pass": "✅", "fail": "❌", "review": "🔎"}
_COLOURS = {"pass": "green", "fail": "red", "review": "yellow"}
_GATES = ("", "metric", "need", "found", "interval", "at", "p", "n", "smallest effect", "note")
_MEASURED = ("metric", "against", "found", "interval", "n", "unit", "better")
_BRIEFLY = ("metric", "against", "found", "interval", "n")
"""what of that fits a terminal; what each metric is stands in the report and in docs/plan.md"""


CORRECTION = (
    "`at` is the level of Holm's step for the number of gates; p, two-sided and not corrected, is at most 1 less that level "
    "exactly where a gate passes."
)
"""of the table of gates, for people"""


def headline(verdict: Row) -> str:
    """The verdict in one line.

    >>> headline({"verdict": "pass", "gates": [{"verdict": "pass"}]})
    '✅ pass: 1 of 1 gates hold'
    >>> headline({"verdict": "pass", "gates": [{"verdict": "pass"}], "champion": None, "not_judged": [{"metric": "a"}]})
    '✅ pass: 1 of 1 gates hold, 1 not judged: no champion yet'
    """
    gates: Sequence[Row] = verdict["gates"]
    words = {"pass": "hold", "fail": "failed", "review": "need a person"}
    count = sum(gate["verdict"] == verdict["verdict"] for gate in gates)
    left_out = len(verdict.get("not_judged", ()))
    said = f"{count} of {len(gates)} gates {words[verdict['verdict']]}" if gates else "no gate was asked for"
    if left_out:
        said = f"{f'{said}, {left_out}' if gates else f'all {left_out} gates'} not judged: no champion yet"
    return f"{MARKS[verdict['verdict']]} {verdict['verdict']}: {said}"


def challenge(verdict: Row) -> str:
    """Whom gates against the champion compared with, in a sentence; empty where no gate asks for one.

    >>> challenge({"champion": None, "not_judged": [{"metric": "accuracy", "demand": ">= 0 against champion", "note": ""}]})
    'There is no champion yet, so this was not judged: accuracy (need >= 0 against champion).'
    """
    if "champion" not in verdict:
        return ""
    if met := verdict["champion"]:
        return f"The champion is release {met['release'][:12]} with policy {met['policy'][:12]}, measured on the same items."
    gates = ", ".join(f"{gate['metric']} (need {gate['demand']})" for gate in verdict["not_judged"])
    return f"There is no champion yet, so this was not judged: {gates}."


def noted(gate: Row) -> str:
    """The plan's note on a gate, and what the reader should know of its items.

    >>> noted({"note": "asked for", "remark": "3 more items left out"}), noted({"note": ""})
    ('asked for; 3 more items left out', '')
    """
    return "; ".join(filter(None, (gate["note"], gate.get("remark"))))


def rows(verdict: Row) -> list[dict[str, str]]:
    """The gates as a table of plain text, for example for a Prefect table artifact."""
    return [_gate(gate) for gate in verdict["gates"]]


def gate_markdown(verdict: Row) -> str:
    """The gates as a markdown table, and whom the champion's were judged against."""
    table = _markdown(_GATES, rows(verdict)) if verdict["gates"] else ""
    return "\n\n".join(filter(None, (table, _cell(challenge(verdict)))))


def markdown(verdict: Row) -> str:
    """The whole verdict: the headline, the gates, the reasons, and everything else that was measured."""
    parts = [f"# {headline(verdict)}"]
    if gates := gate_markdown(verdict):
        parts.append(gates)
    parts.append("\n".join(f"- {_cell(reason)}" for reason in verdict["reasons"]))
    if verdict["measured"]:
        measured = _measured(verdict)
        parts += ["## Also measured", _markdown(_MEASURED, measured)]
        meanings = {row["metric"]: _cell(row["what it is"]) for row in measured}  # beside the numbers they would not fit a page
        parts.append("\n".join(f"- `{metric}`: {meaning}" for metric, meaning in meanings.items()))
    parts.append(
        "Intervals are by conversation: exact for shares and wins, else by random weights "
        f"({verdict['resamples']} resamples, seed {verdict['seed']}). {CORRECTION} "
        "What is also measured is at 95% each, not corrected."
    )
    return "\n\n".join(parts) + "\n"


def gate_table(verdict: Row) -> "Group":
    """The whole verdict for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Text | Table] = [Text(headline(verdict), style=f"bold {_COLOURS[verdict['verdict']]}")]
    styles = [_COLOURS[gate["verdict"]] for gate in verdict["gates"]]
    for title, columns, found, colours in (
        ("Gates", _GATES, rows(verdict), styles),
        ("Also measured", _BRIEFLY, _measured(verdict), [""] * len(verdict["measured"])),
    ):
        if found:
            table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for column in columns:
                table.add_column(column, justify="right" if column in ("found", "p", "n", "smallest effect") else "left")
            for row, colour in zip(found, colours, strict=True):
                table.add_row(*(Text(row[column]) for column in columns), style=colour)
            parts.append(table)
        if title == "Gates" and (said := challenge(verdict)):
            parts.append(Text(said))
    if verdict["verdict"] != "pass":  # else the table has said it
        parts += [Text(f"- {reason}") for reason in verdict["reasons"]]
    return Group(*parts)


def _gate(gate: Row) -> dict[str, str]:
    bounds = [gate[name] for name in ("at_least", "at_most") if gate[name] is not None]
    return {
        "": MARKS[gate["verdict"]],
        "metric": gate["metric"],
        "need": gate["demand"],
        "found": shown(gate["estimate"], bounds),
        "interval": f"[{shown(gate['low'], bounds)}, {shown(gate['high'], bounds)}]",
        "at": percent(gate["level"]),
        "p": probability(gate["p"]) if "p" in gate else "?",  # verdicts of before have none
        "n": str(gate["items"]),
        "smallest effect": "?" if gate["smallest_effect"] is None else f"{gate['smallest_effect']:.3g}",
        "note": noted(gate),
    }


def _measured(verdict: Row) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for row in verdict["measured"]:
        failed = "error" in row
        found.append(
            {
                "metric": row["metric"],
                "against": row["against"] or "",
                "found": "-" if failed else shown(row["estimate"]),
                "interval": row["error"] if failed else f"[{shown(row['low'])}, {shown(row['high'])}]",
                "n": "-" if failed else str(row["items"]),
                "unit": row["unit"],
                "better": row["better"],
                "what it is": row["meaning"],
            }
        )
    return found


def _markdown(columns: Sequence[str], table: Sequence[Mapping[str, str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in table)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
