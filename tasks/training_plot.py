# pyright: basic
"""The picture of a training: what its curve recorded over the steps, a panel for each thing worth watching.

Drawn when somebody looks, from `training.json`, and never part of an artifact: a policy's bytes do not depend on a drawing
library.  Equal curves give equal bytes all the same.  Grey ink on no background: it reads on white and on black.
"""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

CURVE = "training.json"
Rows = Sequence[Mapping[str, float]]
"""a row a step, as in `training.json`"""
_INK = "#808080"
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444")
_POINTS = 400
"""of one line; more cannot be told apart, so neighbours are drawn as their mean"""
NOISY = 40
"""points from which on a line is drawn faint, and its running mean over it"""
_DRAWING = threading.Lock()
"""matplotlib promises nothing to several threads"""


@dataclass(frozen=True)
class Panel:
    """What is drawn together."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """field of the curve, and what the legend calls it"""
    beside: tuple[str, str] | None = None
    """field of another unit, one number an iteration, on an axis of its own at the right"""
    sampled: bool = False
    """one number for all steps of an iteration"""


_SAMPLED = (
    Panel("reward", "mean, 95% interval", (("reward", ""),), sampled=True),
    Panel("KL to the SFT policy", "nats per answer", (("kl", "KL"),), ("kl_coefficient", "coefficient"), sampled=True),
    Panel("answer length", "tokens", (("answer_tokens", ""),), sampled=True),
    Panel("answers that end by themselves", "share", (("finished", ""),), sampled=True),
    Panel("entropy", "nats per token", (("entropy", ""),), sampled=True),
    Panel("held-out chosen answers", "nats per token", (("heldout_logp", ""),), sampled=True),
    Panel("value loss", "squared reward", (("value_loss", "loss"),), ("explained_variance", "explained variance")),
    Panel("clipped by the policy loss", "share of tokens", (("clip_fraction", ""),)),
)
"""of algorithms that learn from sampled answers, in the order of interest"""
_PLAIN = (
    Panel("loss", "nats", (("loss", "all of it"), ("nll", "of imitation"))),
    Panel("accuracy", "share", (("accuracy", "pairs"), ("rewards/accuracies", "pairs"), ("mean_token_accuracy", "next token"))),
    Panel("margin of chosen over rejected", "reward", (("margin", ""), ("rewards/margins", ""))),
    Panel("reward", "reward", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"), ("mean_reward", "mean"))),
    Panel("log odds ratio of chosen to rejected", "nats", (("odds_ratio", ""),)),
    Panel("KL to the SFT policy", "nats per answer", (("kl", ""),)),
)
"""of training on rows that are there beforehand"""
_REWARD_OF = "reward_of/"
"""begins the field of one reward's mean, among several"""


def rows_of(folder: Path) -> Rows:
    """What the training in `folder` recorded; nothing where nothing was trained there."""
    curve = folder / CURVE
    return json.loads(curve.read_text(encoding="utf-8")) if curve.is_file() else ()


def picture(rows: Rows) -> bytes | None:
    """The PNG of a curve; None where no field has two finite numbers."""
    found = panels(rows)
    if not found:
        return None
    with _DRAWING:
        return _drawn(found, rows)


def caption(rows: Rows) -> str:
    """The curve in a sentence: its steps, and where each line began and ended; empty where there is nothing to draw."""
    found = [(panel.title, label, values) for panel in panels(rows) for label, _, values in lines_of(panel, rows)]
    said = [f"{title}{label and f' ({label})'} {ends(values)}" for title, label, values in found]
    return f"Steps {rows[0]['step']:,.0f} to {rows[-1]['step']:,.0f}: {'; '.join(said)}." if said else ""


def panels(rows: Rows) -> list[Panel]:
    """What is worth drawing of a curve, in the order of interest: panels with a field that has two finite numbers."""
    return [panel for panel in _panels(rows) if lines_of(panel, rows)]


def _panels(rows: Rows) -> tuple[Panel, ...]:
    if not any("reward" in row for row in rows):
        return _PLAIN
    entries = sorted({name for row in rows for name in row if name.startswith(_REWARD_OF)})
    named = tuple((name, name.removeprefix(_REWARD_OF).replace("_", " ")) for name in entries)
    each = Panel("each reward by itself", "mean, unweighted", named, sampled=True)
    rest = () if any("value_loss" in row for row in rows) else (Panel("policy loss", "surrogate", (("loss", ""),)),)
    reward, kl, *more = _SAMPLED
    if not any("kl_coefficient" in row for row in rows):
        kl = replace(kl, unit="nats per token")  # TRL's trainers take the mean over tokens
    return (reward, *((each,) if len(named) > 1 else ()), kl, *more, *rest)


def lines_of(panel: Panel, rows: Rows) -> list[tuple[str, list[float], list[float]]]:
    """(label, steps, values) of each line that has two finite numbers."""
    found = [(label, *points(name, rows, sampled=panel.sampled)) for name, label in panel.lines]
    return [(label, steps, values) for label, steps, values in found if len(values) > 1]


def beside(panel: Panel, rows: Rows) -> tuple[str, list[float], list[float]] | None:
    """(label, steps, values) of what has an axis of its own at the right; what never changes needs none."""
    if panel.beside is None:
        return None
    steps, values = points(panel.beside[0], rows, sampled=True)
    return (panel.beside[1], steps, values) if len(values) > 1 and max(values) > min(values) else None


def points(name: str, rows: Rows, *, sampled: bool) -> tuple[list[float], list[float]]:
    """The steps at which `name` is a finite number, and the numbers: one an iteration where all its steps share it."""
    found: list[tuple[float, float]] = []
    last: float | None = None
    for row in rows:
        value, iteration = row.get(name, math.nan), row.get("iteration")
        if not math.isfinite(value) or (sampled and iteration is not None and iteration == last):
            continue
        last = iteration
        found.append((row["step"], value))
    size = math.ceil(len(found) / _POINTS)
    groups = [found[at : at + size] for at in range(0, len(found), size)] if size > 1 else [[point] for point in found]
    mean = [tuple(math.fsum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
    return [step for step, _ in mean], [value for _, value in mean]


def _drawn(panels: Sequence[Panel], rows: Rows) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(len(panels), 3 if len(panels) > 4 else 2)
    down = math.ceil(len(panels) / across)
    wide, high = 10.5, 0.9 + down * (2.5 if down == 1 else 1.9) + 0.6 * (down - 1)
    figure = Figure(figsize=(wide, high), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(  # by hand, in inches: a layout engine draws everything several times
        left=0.75 / wide, right=1 - 0.55 / wide, bottom=0.5 / high, top=1 - 0.4 / high,
        wspace=1.25 * across / (wide - 1.3 - 1.25 * (across - 1)), hspace=0.6 * down / (high - 0.9 - 0.6 * (down - 1)),
    )  # fmt: skip
    figure.patch.set_alpha(0.0)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, number + 1)
        _draw(axes, panel, rows)
        if number + across >= len(panels):
            axes.set_xlabel("optimiser step", color=_INK, fontsize=8)
    written = BytesIO()
    figure.savefig(written, metadata={"Software": None})
    return written.getvalue()


def _draw(axes: Any, panel: Panel, rows: Rows) -> None:  # noqa: ANN401
    lines = lines_of(panel, rows)
    shown = [(axes, label, values) for label, _, values in lines]
    for number, (_, steps, values) in enumerate(lines):
        _plot(axes, steps, values, _COLOURS[number])
    if panel.lines[0][0] == "reward":
        steps, low, high = band(rows)
        axes.fill_between(steps, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0)
    if panel.unit == "share":
        axes.set_ylim(-0.03, 1.03)
    _inked(axes)
    axes.grid(color=_INK, alpha=0.25, linewidth=0.5)
    axes.set_ylabel(panel.unit, color=_INK, fontsize=8)
    if other := beside(panel, rows):
        label, steps, values = other
        right = axes.twinx()
        right.plot(steps, values, color=_COLOURS[1], linewidth=1.2, linestyle="--")
        _inked(right)
        shown.append((right, label, values))
    single = len(shown) == 1
    axes.set_title(f"{panel.title}  {ends(shown[0][2])}" if single else panel.title, color=_INK, fontsize=9.5)
    if not single:
        _legend(axes, shown)


def _legend(axes: Any, shown: Sequence[tuple[Any, str, Sequence[float]]]) -> None:  # noqa: ANN401
    """Name the lines, and where they begin and end, in room of their own above them."""
    from matplotlib.lines import Line2D

    dashed = [own is not axes for own, _, _ in shown]
    handles = [Line2D([], [], color=colour, linestyle="--" if dash else "-") for colour, dash in zip(_COLOURS, dashed)]  # noqa: B905
    for own in {id(own): own for own, _, _ in shown}.values():
        low, high = own.get_ylim()
        own.set_ylim(low, high + 0.11 * len(shown) * (high - low))
    labels = [f"{label} {ends(values)}".strip() for _, label, values in shown]
    axes.legend(
        handles, labels, fontsize=7.5, labelcolor=_INK, framealpha=0.0, loc="upper center", borderaxespad=0.1, labelspacing=0.2,
        handlelength=1.4,
    )  # fmt: skip


def band(rows: Rows) -> tuple[list[float], list[float], list[float]]:
    """(steps, low, high) of the 95% interval of the mean reward, where the curve says of how many answers, and how they vary."""
    able = [row for row in rows if row.get("answers") and math.isfinite(row.get("reward_std", math.nan))]
    half = [{**row, "half": 1.96 * row["reward_std"] / math.sqrt(row["answers"])} for row in able]
    steps, low = points("low", [{**row, "low": row["reward"] - row["half"]} for row in half], sampled=True)
    _, high = points("high", [{**row, "high": row["reward"] + row["half"]} for row in half], sampled=True)
    return steps, low, high


def _plot(axes: Any, steps: Sequence[float], values: Sequence[float], colour: str) -> None:  # noqa: ANN401
    if len(values) < NOISY:
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o" if len(values) < 15 else None, markersize=3)
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45)
    axes.plot(steps, smooth(values), color=colour, linewidth=1.8)


def smooth(values: Sequence[float]) -> list[float]:
    """The running mean over a fifteenth of the line, over less near its ends, so that it begins and ends where the line does."""
    places = range(len(values))
    width = [min(at, len(values) - 1 - at, len(values) // 30) for at in places]
    return [math.fsum(values[at - w : at + w + 1]) / (2 * w + 1) for at, w in zip(places, width, strict=True)]


def _inked(axes: Any) -> None:  # noqa: ANN401
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_offset_text().set_color(_INK)
    axes.margins(x=0.02, y=0.1)
    for spine in axes.spines.values():
        spine.set_color(_INK)


def ends(values: Sequence[float]) -> str:
    """Where a line begins and ends.

    >>> ends([0.123456, 3, 12345.6])
    '0.123 → 1.23e+04'
    """
    return f"{values[0]:.3g} → {values[-1]:.3g}"
