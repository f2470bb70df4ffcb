"""Charts: intervals lie where their numbers are, open ends reach the edge, and the shape says the verdict."""

import math
import re

from tasks.charts import curves, gate_chart, gate_strip

GATE = {"metric": "a<b", "demand": ">= 0.5", "at_least": 0.5, "at_most": None, "low": 0.6, "estimate": 0.7, "high": 0.8,
        "verdict": "pass"}  # fmt: skip


def line(svg):
    left, right = re.search(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="\d+" y2="\d+" class="(?:pass|fail|review)"', svg).groups()
    return float(left), float(right)


def test_an_interval_lies_beyond_its_bound_and_the_shape_says_what_that_means():
    svg = gate_strip(GATE)
    bound = float(re.search(r'<line x1="([\d.]+)" [^>]*class="bound"', svg)[1])
    left, right = line(svg)
    assert bound < left < right < 440
    assert ">0.5</text>" in svg
    assert 'aria-label="a&lt;b: 0.700, from 0.600 to 0.800, &gt;= 0.5"' in svg
    shapes = {said: gate_strip(GATE | {"verdict": said}) for said in ("pass", "review", "fail")}
    assert ["<circle" in shapes[said] for said in shapes] == [True, False, False]
    assert shapes["review"].count("<path") == shapes["fail"].count("<path") == 1


def test_an_open_end_reaches_the_edge():
    assert line(gate_strip(GATE | {"low": None, "high": None})) == (0.0, 440.0)
    assert gate_chart([]) == ""
    assert gate_chart([GATE, GATE | {"estimate": None}]).count("<circle") == 1


def test_a_curve_has_a_panel_for_each_thing_and_says_its_ends():
    rows = [{"step": step, "loss": 1 / step, "accuracy": min(1.0, step / 50), "nll": math.nan} for step in range(1, 61)]
    loss, accuracy = curves(rows)
    assert (loss.title, loss.unit, [(one.label, one.ends) for one in loss.lines]) == (
        "loss",
        "nats",
        [("all of it", "1 → 0.0167")],
    )
    assert accuracy.title == "accuracy"
    assert loss.svg.count('class="faint c0"') == 1  # noisy: its running mean is drawn over it
    assert 'aria-label="loss, nats: all of it 1 → 0.0167"' in loss.svg
    places = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", loss.svg)]
    assert all(8 <= y <= 126 for y in places)
    assert curves([]) == []
    [flat] = curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}])
    assert "nan" not in flat.svg
