"""What the report of a run is about, gathered from the run's record and the artifacts that it names.  It draws and words nothing.

Reads only: the report of a run that ended long ago shows what is still there, and says of the rest that it is gone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.channels import history
from tasks.core.errors import AlignError, DataError
from tasks.core.lineage import Trace, opened, trace_among
from tasks.core.spec import Json
from tasks.core.store import Artifact, Store
from tasks.evidence import Samples, changes, samples
from tasks.judge import VERDICT_FILE
from tasks.released import release_record
from tasks.tables import ANSWERS_FILE
from tasks.training_plot import CURVE

State = Literal["built", "cached", "failed", "stopped", "waiting"]
_STATES: Mapping[str, State] = {
    "Completed": "built", "Cached": "cached", "Failed": "failed", "Crashed": "failed",
    "TimedOut": "failed", "Running": "stopped", "Retrying": "stopped", "AwaitingRetry": "stopped", "Cancelled": "stopped",
    "Cancelling": "stopped",
}  # fmt: skip
"""of Prefect's task runs; every other one waited when the run ended"""
DATA = ("instructions", "preferences", "feedback", "prompts", "texts", "labelled")


@dataclass(frozen=True)
class Cost:
    """What a step took; None where it was not measured."""

    seconds: float | None
    cpu_seconds: float | None
    peak_bytes: int | None
    gpu_bytes: int | None


@dataclass(frozen=True)
class Step:
    """A stage of the run."""

    name: str
    state: State
    ref: str | None
    """`kind/key` of what it ended with"""
    artifact: Artifact | None
    """None too where that is gone since"""
    cost: Cost
    """of building it: in this run where it was built, else when it was"""


@dataclass(frozen=True)
class Funnel:
    """What became of the rows of a data set."""

    name: str
    kind: str
    rows: int
    train: int | None
    heldout: int | None
    kept: int
    refused: int
    dropped: int
    rules: tuple[tuple[str, int, int], ...]
    """rule, records refused by it, and items of kept records"""


@dataclass(frozen=True)
class Changes:
    """What is asked for otherwise than in the release that the channel pointed to before."""

    since: str
    """key of that release"""
    changed: tuple[tuple[str, str], ...]
    followed: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Everything the report shows."""

    record: Mapping[str, Any]
    steps: tuple[Step, ...]
    """as the plan asks for them"""
    verdict: Mapping[str, Any] | None
    release: Mapping[str, Any] | None
    release_key: str | None
    changes: Changes | None
    before: str | None
    """key of the release that this run's is compared with: the champion it met, or what the channel pointed to when it began"""
    stood: bool
    """whether the channel pointed to this very release when the run began"""
    points_to: str | None
    """key of the release that the channel pointed to when this run ended"""
    samples: Samples | None
    funnels: tuple[Funnel, ...]
    traces: tuple[Trace, ...]
    """every artifact of the run and below, inputs first"""

    @property
    def channel(self) -> str | None:
        """What a passing run of this plan moves."""
        release: Any = self.record["plan"].get("release") if self.record.get("flow", "align") == "align" else None
        return release and release.get("channel")

    def step(self, name: str) -> Step | None:
        """The stage called `name`."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def trained(self) -> list[Step]:
        """The stages that left a curve."""
        return [step for step in self.steps if step.artifact and (step.artifact.path / CURVE).is_file()]


def gather(store: Store, record: Mapping[str, Any]) -> Facts:
    """The facts of the run that `record` (`.runs/<run>.json`) is about."""
    steps = _steps(store, record)
    artifacts = [step.artifact for step in steps if step.artifact]
    named = {step.name.replace("-", "_"): step.artifact for step in steps if step.artifact}
    traces = _traces(artifacts, named)
    raw: Mapping[str, Any] = record.get("steps") or {}
    if not all("number" in step for step in raw.values()):  # a record from before they were numbered
        place = {trace.artifact.key: number for number, trace in enumerate(traces)}
        steps = tuple(sorted(steps, key=lambda step: place.get(step.artifact.key, len(place)) if step.artifact else len(place)))
    found = {step.name: step.artifact for step in steps if step.artifact}
    verdict = _read(found.get("verdict"), VERDICT_FILE)
    release = release_record(found["release"]) if "release" in found else None
    own = found["release"].key if "release" in found else None
    pointed = _pointed_to(store, record, record["started"])
    stood = pointed is not None and pointed == own
    met: Any = verdict.get("champion") if verdict else None
    before: str | None = str(met["release"]) if met else None if stood else pointed
    stands = _opened(store, before and f"release/{before}")
    former = release_record(stands) if stands else None
    return Facts(
        record=record, steps=steps, verdict=verdict, release=release,
        release_key=own, stood=stood, points_to=_pointed_to(store, record, record.get("finished") or "9"),
        changes=_changed(before, former, release, found, artifacts, named), before=before,
        samples=_samples(verdict, found, artifacts),
        funnels=tuple(funnel for step in steps if (funnel := _funnel(step))), traces=tuple(traces),
    )  # fmt: skip


def _steps(store: Store, record: Mapping[str, Any]) -> tuple[Step, ...]:
    raw: Mapping[str, Any] = record.get("steps") or {}
    found: list[Step] = []
    for name in sorted(raw, key=lambda name: (raw[name].get("number", 0), name)):
        state = _STATES.get(raw[name]["state"], "waiting")
        artifact = _opened(store, raw[name]["artifact"])
        found.append(Step(name, state, raw[name]["artifact"], artifact, _cost(raw[name].get("seconds"), artifact)))
    return tuple(found)


def _opened(store: Store, ref: str | None) -> Artifact | None:
    try:
        return opened(store.root / ref) if ref else None
    except DataError:
        return None


def _cost(seconds: float | None, artifact: Artifact | None) -> Cost:
    spent: Any = artifact.provenance if artifact else {}
    own: Any = artifact.metrics if artifact else {}  # of trainings from before every stage was measured
    return Cost(
        seconds=spent.get("seconds") if seconds is None else seconds,
        cpu_seconds=spent.get("cpu_seconds", own.get("cpu_seconds")),
        peak_bytes=spent.get("peak_bytes", own.get("peak_rss_bytes")),
        gpu_bytes=spent.get("gpu_bytes", own.get("peak_gpu_bytes")),
    )


def _traces(artifacts: Sequence[Artifact], named: Mapping[str, Artifact]) -> list[Trace]:
    found: dict[str, Trace] = {}
    for artifact in artifacts:
        for trace in trace_among(artifacts, artifact, named).walk():
            found.setdefault(trace.artifact.key, trace)
    return list(found.values())


def _read(artifact: Artifact | None, name: str) -> Any:  # noqa: ANN401
    return json.loads((artifact.path / name).read_text(encoding="utf-8")) if artifact else None


def _samples(verdict: Mapping[str, Any] | None, found: Mapping[str, Artifact], artifacts: Sequence[Artifact]) -> Samples | None:
    try:
        return samples(verdict, _judged(found, artifacts)) if verdict else None
    except AlignError:  # a file is gone, or of an earlier version
        return None


def _judged(found: Mapping[str, Artifact], artifacts: Iterable[Artifact]) -> dict[str, Path]:
    """What the verdict was judged on, and the answers that were scored, by the names of its inputs."""
    by_digest = {artifact.digest: artifact.path for artifact in artifacts}
    folders = {name: by_digest[digest] for name, digest in found["verdict"].inputs.items() if digest in by_digest}
    answers = {name.replace("-", "_"): one.path for name, one in found.items() if (one.path / ANSWERS_FILE).is_file()}
    return folders | answers


def _pointed_to(store: Store, record: Mapping[str, Any], until: str) -> str | None:
    """Key of the release that the plan's channel pointed to at the time `until`."""
    plan = record["plan"]
    if record.get("flow", "align") != "align" or not plan.get("release"):
        return None
    moves = [move for move in history(store, plan["release"]["channel"]) if move["when"] <= until]
    return moves[-1]["release"] if moves else None


def _changed(
    since: str | None,
    former: Mapping[str, Any] | None,
    release: Mapping[str, Any] | None,
    found: Mapping[str, Artifact],
    artifacts: Sequence[Artifact],
    named: Mapping[str, Artifact],
) -> Changes | None:
    if since is None or former is None or "verdict" not in found:
        return None
    mine: list[Any] = release["lineage"] if release else _lineage(found, artifacts, named)
    changed, followed = changes(former["lineage"], mine)
    return Changes(since, tuple(changed), tuple(followed))


def _lineage(
    found: Mapping[str, Artifact], artifacts: Sequence[Artifact], named: Mapping[str, Artifact]
) -> list[dict[str, Json]]:
    """As a release would hold it: everything below the verdict, which was measured on the policy."""
    return [trace.to_json() for trace in trace_among(artifacts, found["verdict"], named).walk()]


def _funnel(step: Step) -> Funnel | None:
    artifact = step.artifact
    path = artifact.path / "report.json" if artifact else None
    if artifact is None or path is None or artifact.kind not in DATA or not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    counts: dict[str, Any] = report.get("metrics", {})
    if not counts.get("rows_in"):
        return None
    rules = [(str(rule["rule"]), int(rule["records"]), int(rule.get("items", 0))) for rule in report.get("rules", [])]
    return Funnel(
        name=step.name.removeprefix("curate-"), kind=artifact.kind, rows=counts["rows_in"], train=counts.get("train"),
        heldout=counts.get("heldout"), kept=counts["rows_kept"], refused=counts.get("rows_quarantined", 0),
        dropped=counts.get("dropped", 0), rules=tuple(sorted(rules, key=lambda rule: (-rule[1], -rule[2], rule[0]))),
    )  # fmt: skip
