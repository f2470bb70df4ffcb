# pyright: basic
"""The picture of a comparison: quality against memory of training.  Grey ink on no background: it reads on white and on black."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INK = "#808080"
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444")
_MARKERS = "osD^vP"
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
_PLACES = [(far * x, far * y) for far in (10, 24, 40, 58, 78) for x, y in _DIRECTIONS]
"""where a label may stand, in points from its mark, the nearest first"""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the plot as a PNG: held-out answers, with intervals, against peak memory; without a point, an empty frame says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), dpi=120)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    points = [point for row in record["rows"] if (point := _point(row))]
    for number, (_, memory, cell) in enumerate(points):
        spread = [[cell["value"] - cell["low"]], [cell["high"] - cell["value"]]]
        colour = _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number // len(_COLOURS) % len(_MARKERS)]
        axes.errorbar(
            memory, cell["value"], yerr=spread, fmt=marker, color=colour, ecolor=colour, elinewidth=1, capsize=3, markersize=7
        )  # fmt: skip
    axes.set_xlabel("peak memory of training, GiB", color=_INK)
    axes.set_ylabel("perplexity on held-out answers, over the base's", color=_INK)
    axes.set_title(f"Lower and further left is better; bars: {record['level']:.0%} intervals", color=_INK, fontsize=10)
    axes.axhline(1.0, color=_INK, linewidth=1, linestyle=":")
    axes.margins(x=0.12, y=0.08)
    axes.grid(color=_INK, alpha=0.25, linewidth=0.5)
    axes.tick_params(colors=_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    if not points:
        axes.text(0.5, 0.5, "nothing was measured", color=_INK, ha="center", transform=axes.transAxes)
    figure.tight_layout()
    _label(figure, axes, points)
    figure.savefig(path, metadata={"Software": None})


def _point(row: Mapping[str, Any]) -> tuple[str, float, Mapping[str, float]] | None:
    """(label, GiB, quality), where both were measured."""
    memory, quality = row["cells"]["peak_memory_bytes"], row["cells"]["answers"]
    if memory is None or quality is None or "low" not in quality:
        return None
    return row["label"], memory["value"] / 2**30, quality


def _label(figure: Any, axes: Any, points: list[tuple[str, float, Mapping[str, float]]]) -> None:  # noqa: ANN401
    """Write each label at the first place beside its mark where it covers no other label and no mark."""
    renderer = figure.canvas.get_renderer()
    taken = []
    marks = [axes.transData.transform((memory, cell["value"])) for _, memory, cell in points]
    frame = axes.get_window_extent(renderer)
    for number, (label, memory, cell) in enumerate(points):
        best, fewest = None, None
        for dx, dy in _PLACES:
            text = axes.annotate(
                label,
                (memory, cell["value"]),
                xytext=(dx, dy),
                textcoords="offset points",
                color=_COLOURS[number % len(_COLOURS)],
                fontsize=9,
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="center",
                arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.5} if max(abs(dx), abs(dy)) > 10 else None,
            )
            box = text.get_window_extent(renderer).padded(2)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            covered = sum(box.overlaps(other) for other in taken) + sum(box.contains(*mark) for mark in marks) + 2 * outside
            if fewest is None or covered < fewest:
                if best is not None:
                    best.remove()
                best, fewest, kept = text, covered, box
            else:
                text.remove()
            if covered == 0:
                break
        taken.append(kept)
