"""The stage `verdict`: gates over everything that was measured.  Only its spec holds bounds, so a new bound judges afresh and
measures nothing.

Inputs: any number of scores artifacts; the ones of a model are named after it (`scores_candidate`, `metrics_parent`, ...).  Where
a champion was met, also `policy`, the candidate, and `champion`, the policy of the release that stands.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from evals.gates import Gate, Judgement, Verdict, judge, measured, overall
from evals.report import markdown
from evals.scores import CHAMPION, Scores
from evals.statistics import RESAMPLES
from tasks.core.contract import Metrics, Run, Stage
from tasks.core.files import write_json
from tasks.core.lineage import opened
from tasks.core.spec import Json, Spec
from tasks.policy import read_record

VERDICT_FILE = "verdict.json"
GATES_FILE = "gates.md"
MODELS = ("policy", CHAMPION)
"""inputs that are policies; all others are scores"""


class VerdictSpec(Spec):
    """What a release must show."""

    gates: tuple[Gate, ...] = ()
    """without any the verdict is review, and nothing can be released"""
    seed: int = Field(default=0, ge=0)
    """of the resampling"""
    resamples: int = Field(default=RESAMPLES, ge=1000)
    """per interval"""


class ChallengeSpec(VerdictSpec):
    """What a release must show, beside the release that stands."""

    champion: str
    """key of that release; the input `champion` is its policy"""


def judged_by(gates: tuple[Gate, ...], seed: int, champion: str | None) -> VerdictSpec:
    """What decides a verdict; without a champion it is what it always was, so that a plan without such gates stays built."""
    return ChallengeSpec(gates=gates, seed=seed, champion=champion) if champion else VerdictSpec(gates=gates, seed=seed)


def verdict(spec: VerdictSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `verdict.json` (see `evals.report`) and `gates.md`.  Without a champion, gates against one are not judged."""
    models = {name: path for name, path in inputs.items() if name in MODELS}
    records = [read_record(path) for path in models.values()]
    tokens = [CHAMPION] if len({record.tokenizer for record in records}) > 1 else []
    texts = [CHAMPION] if len({(record.tokenizer, record.template) for record in records}) > 1 else []
    measures = {name: path for name, path in inputs.items() if name not in models}
    scores = Scores.read(measures, other_tokens=tokens, other_texts=texts)
    left_out = [gate for gate in spec.gates if gate.meets_champion and not isinstance(spec, ChallengeSpec)]
    judgements = judge([gate for gate in spec.gates if gate not in left_out], scores, seed=spec.seed, resamples=spec.resamples)
    said = overall(judgements) if judgements or not left_out else "fail"
    gates: list[Json] = [judgement.row() for judgement in judgements]
    also: list[Json] = [*measured(scores, seed=spec.seed, resamples=spec.resamples)]
    record: dict[str, Json] = {
        "verdict": said,
        "reasons": [*_reasons(said, judgements, left_out)],
        "gates": gates,
        **_challenge(spec, models, left_out),
        "measured": also,
        "seed": spec.seed,
        "resamples": spec.resamples,
    }
    write_json(out / VERDICT_FILE, record)
    (out / GATES_FILE).write_text(markdown(record), encoding="utf-8")
    for judgement in judgements:
        run.log(judgement.sentence)
    counts: Metrics = {name: sum(j.verdict == name for j in judgements) for name in ("pass", "review", "fail")}
    return {"verdict": said, "gates": len(judgements), **counts, **({"not_judged": len(left_out)} if left_out else {})}


def _challenge(spec: VerdictSpec, models: Mapping[str, Path], left_out: Sequence[Gate]) -> dict[str, Json]:
    """What the record says of the champion; nothing where no gate asks for one."""
    if not any(gate.meets_champion for gate in spec.gates):
        return {}
    met: Json = {"release": spec.champion, "policy": opened(models[CHAMPION]).key} if isinstance(spec, ChallengeSpec) else None
    return {
        "champion": met,
        "not_judged": [{"metric": gate.metric, "demand": gate.demand, "note": gate.note} for gate in left_out],
    }


def _reasons(said: Verdict, judgements: list[Judgement], left_out: Sequence[Gate]) -> list[str]:
    """The sentences that led to the verdict: of all gates for a pass, else of those that did not pass, fails first."""
    if left_out and not judgements:
        return [
            "every gate is against the champion and there is none yet; add a gate against base or parent, which then decides the "
            "first release"
        ]
    if not judgements:
        return ["no gate was asked for, so nothing says that this is better; add gates to the plan"]
    order = ("pass",) if said == "pass" else ("fail", "review")
    return [judgement.sentence for name in order for judgement in judgements if judgement.verdict == name]


VERDICT = Stage("verdict", 3, "verdict", verdict)
