"""Metric modules over answers, in the child because `evaluate` imports torch."""

from pathlib import Path

from tasks.core.contract import Inputs, Metrics, Run
from tasks.measure import MetricsSpec, measure_answers


def run(spec: MetricsSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` for the answers in `inputs`."""
    return measure_answers(spec, inputs, out, run)
