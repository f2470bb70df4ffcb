"""The stage `verdict`: gates over everything that was measured.  Only its spec holds bounds, so a new bound judges afresh and
measures nothing.

Inputs: any number of scores artifacts; the ones of a model are named after it (`scores_candidate`, `metrics_parent`, ...).
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from evals.gates import Gate, Judgement, Verdict, judge, measured, overall
from evals.report import markdown
from evals.scores import Scores
from evals.statistics import RESAMPLES
from tasks.core.contract import Metrics, Run, Stage
from tasks.core.files import write_json
from tasks.core.spec import Json, Spec

VERDICT_FILE = "verdict.json"
GATES_FILE = "gates.md"


class VerdictSpec(Spec):
    """What a release must show."""

    gates: tuple[Gate, ...] = ()
    """without any the verdict is review, and nothing can be released"""
    seed: int = Field(default=0, ge=0)
    """of the resampling"""
    resamples: int = Field(default=RESAMPLES, ge=1000)
    """per interval"""


def verdict(spec: VerdictSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `verdict.json` (see `evals.report`) and `gates.md`."""
    scores = Scores.read(inputs)
    judgements = judge(spec.gates, scores, seed=spec.seed, resamples=spec.resamples)
    said = overall(judgements)
    gates: list[Json] = [judgement.row() for judgement in judgements]
    also: list[Json] = [*measured(scores, seed=spec.seed, resamples=spec.resamples)]
    record: dict[str, Json] = {
        "verdict": said,
        "reasons": [*_reasons(said, judgements)],
        "gates": gates,
        "measured": also,
        "seed": spec.seed,
        "resamples": spec.resamples,
    }
    write_json(out / VERDICT_FILE, record)
    (out / GATES_FILE).write_text(markdown(record), encoding="utf-8")
    for judgement in judgements:
        run.log(judgement.sentence)
    counts: Metrics = {name: sum(j.verdict == name for j in judgements) for name in ("pass", "review", "fail")}
    return {"verdict": said, "gates": len(judgements), **counts}


def _reasons(said: Verdict, judgements: list[Judgement]) -> list[str]:
    """The sentences that led to the verdict: of all gates for a pass, else of those that did not pass, fails first."""
    if not judgements:
        return ["no gate was asked for, so nothing says that this is better; add gates to the plan"]
    order = ("pass",) if said == "pass" else ("fail", "review")
    return [judgement.sentence for name in order for judgement in judgements if judgement.verdict == name]


VERDICT = Stage("verdict", 3, "verdict", verdict)
