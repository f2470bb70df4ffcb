# pyright: basic
"""The picture of a comparison: quality against memory of training.  Grey ink on no background: it reads on white and on black."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INK = "#808080"
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444")
_MARKERS = "osD^vP"
_FAR = (4, 14, 28, 44, 62, 84, 110)
"""how far a label may stand from its mark, in points, the nearest first"""
_AROUND = 16
"""directions in which it may"""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the plot as a PNG: held-out answers, with intervals, against peak memory; without a point, an empty frame says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6), dpi=120)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    points = [point for row in record["rows"] if (point := _point(row))]
    for number, (_, memory, cell) in enumerate(points):
        low, high = (math.nan if cell[end] is None else cell[end] for end in ("low", "high"))  # no bar towards what is not known
        spread = [[cell["value"] - low], [high - cell["value"]]]
        colour = _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number // len(_COLOURS) % len(_MARKERS)]
        axes.errorbar(
            memory, cell["value"], yerr=spread, fmt=marker, color=colour, ecolor=colour, lw=1, capsize=2, markersize=7
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


def _point(row: Mapping[str, Any]) -> tuple[str, float, Mapping[str, Any]] | None:
    """(label, GiB, quality), where both were measured."""
    memory, quality = row["cells"]["peak_memory_bytes"], row["cells"]["answers"]
    if memory is None or quality is None or "low" not in quality:
        return None
    return row["label"], memory["value"] / 2**30, quality


def _label(figure: Any, axes: Any, points: list[tuple[str, float, Mapping[str, Any]]]) -> None:  # noqa: ANN401
    """Write each label near its mark where it covers the least: no other label, no mark, few bars."""
    from matplotlib.transforms import Bbox

    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    marks: list[tuple[Any, int]] = []  # what a label should not cover, and how much worse it is
    for _, memory, cell in points:
        x, y = axes.transData.transform((memory, cell["value"]))
        marks.append((Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale), 20))
        ends = [axes.transData.transform((memory, cell[end]))[1] for end in ("low", "high")]
        marks.append((Bbox([[x - 2, min(ends)], [x + 2, max(ends)]]), 4))
    for number, (label, memory, cell) in enumerate(points):
        x, y = axes.transData.transform((memory, cell["value"]))
        probe = axes.text(0, 0, label, fontsize=9)
        size = probe.get_window_extent(renderer)
        probe.remove()
        places: list[tuple[float, float, float, Any]] = []
        for far in _FAR:
            for turn in range(_AROUND):
                right, up = math.cos(math.tau * turn / _AROUND), math.sin(math.tau * turn / _AROUND)
                dx, dy = right * ((far + 5) * scale + size.width / 2), up * ((far + 5) * scale + size.height / 2)
                box = Bbox.from_bounds(x + dx - size.width / 2, y + dy - size.height / 2, size.width, size.height)
                outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
                cost = sum(weight for mark, weight in marks if box.overlaps(mark)) + 30 * outside + far / 10
                places.append((cost, dx / scale, dy / scale, box))
        _, dx, dy, box = min(places, key=lambda place: place[0])
        marks.append((box.padded(2), 30))
        axes.annotate(
            label,
            (memory, cell["value"]),
            xytext=(dx, dy),
            textcoords="offset points",
            color=_COLOURS[number % len(_COLOURS)],
            fontsize=9,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": _INK, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
        )
