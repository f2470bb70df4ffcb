"""Charts as SVG, drawn by hand: the gates' intervals, and the curves of a training.

Colours are classes, never written here, so that who shows a chart fits it to a light or a dark page.  Equal input gives equal
text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from evals.gates import shown
from tasks.training_plot import NOISY, Panel, Rows, band, beside, ends, lines_of, panels, smooth

SAID = {"pass": "passed", "review": "open", "fail": "failed"}
"""verdict of a gate -> how people call it"""
_WIDE, _TALL = 440, 58
"""of a gate in a chart of all: as wide as the review's form, so that its text is read at its own size there"""
_COLOURS = (
    "text{font:14px sans-serif;fill:#808080}.bound{stroke:#808080;stroke-width:2;stroke-dasharray:3 2}.ground{fill:#8080801f}"
    ".allowed{fill:#16a34a33}.pass{fill:#16a34a;stroke:#16a34a}.review{fill:#d97706;stroke:#d97706}.fail{fill:#dc2626;stroke:#dc2626}"
    "text.pass,text.review,text.fail{stroke:none}"
)
"""of a chart that is a picture of its own, on a page of either colour"""

Point = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """From numbers to places on the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        """With room on both sides."""
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - pad, high + pad, start, end)

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 4) -> list[float]:
        """At most `most` round numbers in between, at least two where there is a span.

        >>> _Axis(0.0, 1.06, 0, 1).ticks(), _Axis(1, 192, 0, 1).ticks()
        ([0.0, 0.5, 1.0], [50.0, 100.0, 150.0])
        """
        span = self.high - self.low
        if not span > 0:
            return [self.low]
        size = 10.0 ** math.floor(math.log10(span / most))
        step = next(size * times for times in (1, 2, 2.5, 5, 10, 20) if span / (size * times) <= most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def gate_chart(gates: Sequence[Mapping[str, Any]]) -> str:
    """Intervals and bounds, each gate on its own scale: green ground is where the bounds allow the whole interval to lie."""
    if not gates:
        return ""
    size = f'width="{_WIDE}" height="{_TALL * len(gates)}" viewBox="0 0 {_WIDE} {_TALL * len(gates)}"'
    lines = [line for number, gate in enumerate(gates) for line in _titled(gate, number * _TALL)]
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_COLOURS}</style>{"".join(lines)}</svg>'


def _titled(gate: Mapping[str, Any], top: int) -> Iterator[str]:
    yield f'<text x="0" y="{top + 16}">{escape(gate["metric"])}: {escape(gate["demand"])}</text>'
    yield f'<text x="{_WIDE}" y="{top + 16}" text-anchor="end" class="{gate["verdict"]}">{SAID[gate["verdict"]]}</text>'
    yield from _interval(gate, _WIDE, top + 36)


def gate_strip(gate: Mapping[str, Any], wide: int = 440) -> str:
    """One gate's interval and bounds, with their numbers below, as wide as its place."""
    scale = _scale(gate, wide)
    numbers = [
        f'<text x="{min(max(scale(bound), 18), wide - 18):.1f}" y="47" text-anchor="middle">{_short(bound)}</text>'
        for bound in _bounds(gate).values()
    ]
    about = f"{gate['metric']}: {shown(gate['estimate'])}, from {shown(gate['low'])} to {shown(gate['high'])}, {gate['demand']}"
    drawn = "".join([*_interval(gate, wide, 18), *numbers])
    return f'<svg viewBox="0 0 {wide} 52" role="img" aria-label="{_attribute(about)}">{drawn}</svg>'


def _bounds(gate: Mapping[str, Any]) -> dict[str, float]:
    return {name: gate[name] for name in ("at_least", "at_most") if gate[name] is not None}


def _scale(gate: Mapping[str, Any], wide: int) -> _Axis:
    known = [number for number in (gate["low"], gate["estimate"], gate["high"], *_bounds(gate).values()) if number is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    pad = 0.12 * ((high - low) or abs(high) or 1)
    return _Axis(low - pad, high + pad, 0, wide)


def _interval(gate: Mapping[str, Any], wide: int, y: int) -> Iterator[str]:
    """The shape at the estimate says the verdict too: a disc, a diamond, a cross."""
    x, bounds = _scale(gate, wide), _bounds(gate)
    start, end = x(bounds["at_least"]) if "at_least" in bounds else 0, x(bounds["at_most"]) if "at_most" in bounds else wide
    said = gate["verdict"]
    yield f'<rect x="0" y="{y - 11}" width="{wide}" height="22" class="ground"/>'
    yield f'<rect x="{start:.1f}" y="{y - 11}" width="{max(0.0, end - start):.1f}" height="22" class="allowed"/>'
    for bound in bounds.values():
        yield f'<line x1="{x(bound):.1f}" x2="{x(bound):.1f}" y1="{y - 14}" y2="{y + 14}" class="bound"/>'
    left, right = (edge if gate[name] is None else x(gate[name]) for name, edge in (("low", 0.0), ("high", float(wide))))
    yield f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" class="{said}" stroke-width="4"/>'
    if gate["estimate"] is not None:
        at = x(gate["estimate"])
        yield {
            "pass": f'<circle cx="{at:.1f}" cy="{y}" r="6.5" class="pass"/>',
            "review": f'<path d="M{at:.1f} {y - 9}l8.5 9l-8.5 9l-8.5 -9z" class="review"/>',
            "fail": f'<path d="M{at - 7:.1f} {y - 7}l14 14m0 -14l-14 14" class="fail" stroke-width="4"/>',
        }[said]


# -- curves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a panel, for its legend."""

    label: str
    ends: str
    """where it begins and ends"""
    style: str
    """its class: `c0`, `c1`, ..."""


@dataclass(frozen=True)
class Curve:
    """A panel of a training's picture."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    svg: str


_BOX = (46.0, 8.0, 318.0, 126.0)
"""left, top, right, bottom of the axes"""
_SIZE = (330, 150)


def curves(rows: Rows) -> list[Curve]:
    """The panels of a training's curve, in the order of interest; none where nothing has two finite numbers."""
    return [_curve(panel, rows) for panel in panels(rows)]


def _curve(panel: Panel, rows: Rows) -> Curve:
    lines, other = lines_of(panel, rows), beside(panel, rows)
    steps, low, high = band(rows) if panel.lines[0][0] == "reward" else ([], [], [])
    left, top, right, bottom = (*_BOX[:2], _BOX[2] - 34, _BOX[3]) if other else _BOX
    span = [step for _, found, _ in lines for step in found]
    across = _Axis(min(span), max(span), left + 4, right - 4)
    share = [0.0, 1.0] if panel.unit == "share" else []
    up = _Axis.around([*share, *low, *high, *(value for _, _, values in lines for value in values)], bottom, top)
    drawn = [*_grid(across, up, left, right, bottom), *_shaded(across, up, steps, low, high)]
    legend: list[Line] = []
    for number, (label, where, values) in enumerate(lines):
        drawn += _traced(across, up, where, values, f"c{number % 6}")
        legend.append(Line(label, ends(values), f"c{number % 6}"))
    if other:
        label, where, values = other
        theirs, style = _Axis.around(values, bottom, top), f"c{len(lines) % 6}"
        drawn += [f'<text x="{right + 4}" y="{theirs(tick) + 3.5:.1f}">{_short(tick)}</text>' for tick in theirs.ticks()]
        drawn.append(f'<path d="{_path(across, theirs, where, values)}" class="line {style}"/>')
        legend.append(Line(f"{label} (right)", ends(values), style))
    about = f"{panel.title}, {panel.unit}: {'; '.join(f'{line.label} {line.ends}'.strip() for line in legend)}"
    wide, tall = _SIZE
    svg = f'<svg viewBox="0 0 {wide} {tall}" role="img" aria-label="{_attribute(about)}">{"".join(drawn)}</svg>'
    return Curve(panel.title, panel.unit, tuple(legend), svg)


def _grid(across: _Axis, up: _Axis, left: float, right: float, bottom: float) -> Iterator[str]:
    for tick in up.ticks():
        yield f'<line x1="{left}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" class="grid"/>'
        yield f'<text x="{left - 5}" y="{up(tick) + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>'
    for tick in across.ticks(5):
        if tick == int(tick):
            yield f'<text x="{across(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{_short(tick)}</text>'
    yield f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>'


def _shaded(across: _Axis, up: _Axis, steps: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Iterator[str]:
    if len(steps) > 1:
        there, back = _path(across, up, steps, high), _path(across, up, steps[::-1], low[::-1])
        yield f'<path d="{there}L{back[1:]}Z" class="band c0"/>'


def _traced(across: _Axis, up: _Axis, steps: Sequence[float], values: Sequence[float], style: str) -> Iterator[str]:
    if len(values) >= NOISY:
        yield f'<path d="{_path(across, up, steps, values)}" class="faint {style}"/>'
        values = smooth(values)
    yield f'<path d="{_path(across, up, steps, values)}" class="line {style}"/>'
    if len(values) < 15:
        for step, value in zip(steps, values, strict=True):
            yield f'<circle cx="{across(step):.1f}" cy="{up(value):.1f}" r="2.2" class="dot {style}"/>'


def _path(across: _Axis, up: _Axis, steps: Sequence[float], values: Sequence[float]) -> str:
    return "M" + "L".join(f"{across(step):.1f} {up(value):.1f}" for step, value in zip(steps, values, strict=True))


def _short(number: float) -> str:
    """A tick.

    >>> [_short(number) for number in (0.5, 1.0, 150.0, 25000.0, -0.0125, 1e-06)]
    ['0.5', '1', '150', '25,000', '-0.0125', '1e-06']
    """
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.6g}"


def _attribute(text: str) -> str:
    return escape(text, {'"': "&quot;"})
