# pyright: basic
"""A forgetting matrix as people read it: markdown, a table for a terminal, a heat map whose grey ink reads on black too."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.gates import shown

if TYPE_CHECKING:
    from rich.table import Table

_INK = "#808080"
_TITLES = {
    "average_forgetting": "average forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "final_loss": "final loss",
}


def markdown(record: Mapping[str, Any]) -> str:
    """The matrix, the averages, and what they mean."""
    tasks = record["tasks"]
    lines = [
        "# What was forgotten",
        "",
        f"Mean negative log-likelihood per answer token, nats, on held-out data, with its {record['level']:.0%} interval. "
        "In brackets: perplexity over that just after the task was learned; above 1 is forgetting.",
        "",
        f"| | {' | '.join(tasks)} |",
        f"|---|{'---:|' * len(tasks)}",
        *(
            f"| {name} | {' | '.join(_cell(cell, bold=i == j + 1) for j, cell in enumerate(cells))} |"
            for i, (name, cells) in enumerate(zip(record["rows"], record["cells"], strict=True))
        ),
        "",
    ]
    for name, value in record["averages"].items():
        lines.append(f"- {_TITLES[name]}: {_estimate(value)}, {record['meanings'][name]}")
    if record["apart"]:
        lines += [
            "",
            "Each task has an adapter of its own: a learned task is answered by its own, and so cannot be forgotten; one that "
            "was not learned yet is answered by the base.",
        ]
    for name, count in record["seen_in_training"].items():
        lines += ["", f"**{count} held-out conversations of {name} are trained on in another task**: its column is too good."]
    return "\n".join(lines) + "\n"


def table(record: Mapping[str, Any]) -> "Table":
    """For a terminal: the matrix, just learned in bold, forgotten in red; in brackets perplexity over just after learning."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="Nats per token, held out", title_justify="left", box=None)
    made.add_column("")
    for name in record["tasks"]:
        made.add_column(name, justify="right")
    for i, (name, cells) in enumerate(zip(record["rows"], record["cells"], strict=True)):
        texts: list[Text] = []
        for j, cell in enumerate(cells):
            lost = cell["ratio"] and (cell["ratio"]["low"] or 0) > 1
            style = "bold green" if i == j + 1 else "red" if lost else "dim" if i <= j else ""
            texts.append(
                Text(f"{cell['value']:.3f}" + (f" ({cell['ratio']['value']:.2f})" if cell["ratio"] else ""), style=style)
            )
        made.add_row(name, *texts)
    return made


def averages(record: Mapping[str, Any]) -> list[str]:
    """The averages with their intervals, a line each."""
    return [f"{_TITLES[name]:<20}{_estimate(value)}" for name, value in record["averages"].items()]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the heat map as a PNG: colour is nats per token above what it was just after the task was learned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cells, tasks, rows = record["cells"], record["tasks"], record["rows"]
    above = [[cell["value"] - cells[j + 1][j]["value"] for j, cell in enumerate(row)] for row in cells]
    reach = max(1e-6, *(abs(value) for row in above for value in row))
    figure = Figure(figsize=(2.6 + 1.5 * len(tasks), 1.6 + 0.6 * len(rows)), dpi=120)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    image = axes.imshow(above, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -reach, reach), aspect="auto")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            ink = "white" if abs(above[i][j]) > 0.6 * reach else "black"
            axes.text(j, i, f"{cell['value']:.2f}", ha="center", va="center", color=ink, fontsize=9)
            if i == j + 1:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    axes.set_xticks(range(len(tasks)), tasks, color=_INK)
    axes.set_yticks(range(len(rows)), rows, color=_INK)
    axes.tick_params(colors=_INK, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("nats per token above just after learning", color=_INK)
    bar.ax.tick_params(colors=_INK)
    bar.outline.set_visible(False)
    axes.set_title("Loss on held-out answers; framed: just after learning", color=_INK, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def _cell(cell: Mapping[str, Any], *, bold: bool) -> str:
    value = f"{cell['value']:.3f}"
    text = f"{f'**{value}**' if bold else value} [{shown(cell['low'])}, {shown(cell['high'])}]"
    return text + (f" ({cell['ratio']['value']:.2f})" if cell["ratio"] else "")


def _estimate(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
