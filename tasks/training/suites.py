"""Metric modules over the answers to a suite, in the child because `evaluate` imports torch."""

from pathlib import Path

from tasks.core.contract import Inputs, Metrics, Run
from tasks.suites import SuiteScoresSpec, measure_suite


def run(spec: SuiteScoresSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `suite.json` for the answers in `inputs`."""
    return measure_suite(spec, inputs, out, run)
