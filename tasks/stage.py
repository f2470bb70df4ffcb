"""The one bridge to Prefect: a stage becomes a task run, named by the stage.

The artifact is the truth and Prefect mirrors it: the task asks the store, and a hit ends in the state `Cached`.  Prefect's own
result cache is off, so there is no second opinion.  References between tasks are `kind/key`.
"""

import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from tasks.core.build import Source, Workshop
from tasks.core.contract import Progress, Run, Stage
from tasks.core.errors import RETRYABLE, AlignError
from tasks.core.secrets import redact
from tasks.core.spec import Spec
from tasks.core.store import Artifact
from tasks.present import headline, summary, table, training, watched

Ref = str
"""an artifact as tasks pass it on: `kind/key`"""
RETRY_DELAY_SECONDS: list[float] = [5, 30, 120]
_PROGRESS_SECONDS = 3.0


@dataclass(frozen=True)
class Event:
    """What a listener hears: a stage started, moved, spoke, or ended."""

    stage: str
    what: str
    """started, progress, log, built, cached, failed; of a run, report: `text` is where it lies"""
    text: str = ""
    progress: Progress | None = None
    artifact: Artifact | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Submit:
    """Builds by submitting one Prefect task run per stage; what it returns are futures of references."""

    workshop: Workshop
    plan: str
    """name of the plan, the prefix of artifact keys in the UI"""
    fresh: frozenset[str] = frozenset()
    """stages to build again whatever the store holds"""
    listen: Callable[[Event], None] = lambda event: None
    futures: dict[str, PrefectFuture[Ref]] = field(default_factory=dict[str, PrefectFuture[Ref]])

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> PrefectFuture[Ref]:
        """Submit `stage`; `inputs` are futures of this builder, artifacts, or paths of raw files."""
        named = name or stage.name
        sources = {key: str(value) for key, value in inputs.items() if isinstance(value, Path)}
        there = {key: self.workshop.store.ref(value) for key, value in inputs.items() if isinstance(value, Artifact)}
        futures = {key: value for key, value in inputs.items() if key not in sources}
        execution = self.workshop.execution
        run: Any = _build.with_options(
            name=named,
            task_run_name=named,
            description=(type(spec).__doc__ or "").strip() or None,
            retries=execution.retries if stage.heavy else 0,
            retry_delay_seconds=RETRY_DELAY_SECONDS[: max(1, execution.retries)],
            retry_condition_fn=_worth_retrying,
        )
        request = _Request(self, stage, spec, named)
        self.futures[named] = run.submit(_Opaque(request), sources, futures | there)
        return self.futures[named]


@dataclass(frozen=True)
class _Request:
    builder: Submit
    stage: Stage
    spec: Spec
    name: str


class _Opaque:
    """Keeps Prefect from walking through a value it has no business in."""

    def __init__(self, value: _Request) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{self.value.stage.name} v{self.value.stage.version}"


@task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def _build(request: _Opaque, sources: dict[str, str], artifacts: dict[str, Ref]) -> Ref | State[Ref]:
    asked = request.value
    builder, name = asked.builder, asked.name
    store = builder.workshop.store
    logger = get_run_logger()
    key = artifact_key(builder.plan, name)
    inputs: dict[str, Source] = {part: Path(path) for part, path in sources.items()}
    inputs |= {part: store.at(ref) for part, ref in artifacts.items()}
    started = time.monotonic()

    def log(line: str) -> None:
        logger.info(line)
        builder.listen(Event(name, "log", line))

    report = _ProgressReport(key, name, builder.listen)
    run = Run(Path(), builder.workshop.models, log=log, progress=report, started=lambda: builder.listen(Event(name, "started")))
    try:
        artifact, built = builder.workshop.build(asked.stage, asked.spec, inputs, fresh=name in builder.fresh, run=run)
    except AlignError as error:
        _let_go(error)
        builder.listen(Event(name, "failed", str(error), seconds=time.monotonic() - started))
        if asked.stage.heavy:
            _show_unfinished(store.scratch(builder.workshop.identity(asked.stage, asked.spec, inputs).key), key, error)
        raise
    said, about = headline(artifact), (type(asked.spec).__doc__ or "").strip()
    create_markdown_artifact(summary(artifact, built=built, about=about), key=key, description=said)
    if rows := table(artifact):
        create_table_artifact(rows, key=f"{key}-table", description=said)
    what = "built" if built else "cached"
    seconds = float(str(artifact.provenance["seconds"])) if built else time.monotonic() - started
    builder.listen(Event(name, what, artifact=artifact, seconds=seconds))
    ref = store.ref(artifact)
    short = f"{artifact.kind}/{artifact.key[:12]}"
    logger.info(f"{what} in {seconds:.1f} s: {said} ({short})")
    return ref if built else Completed(name="Cached", message=f"{short} was built {artifact.created}", data=ref)


def _show_unfinished(work: Path, key: str, error: AlignError) -> None:
    """The curve of a training that ended itself, where it left one: the numbers it was ended for."""
    if lines := training(work):
        said = redact(str(error))
        create_markdown_artifact("\n".join([f"# {said}", "", *lines]), key=f"{key}-unfinished", description=said)


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of a raised error still hold: Prefect keeps errors, and an open database would outlive the run."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _worth_retrying(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Lost machines and memory are; what the user asked for is not, and neither is a bug."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, RETRYABLE)


class _ProgressReport:
    """Progress of one stage as a Prefect progress artifact and log lines, at most one every few seconds."""

    def __init__(self, key: str, name: str, listen: Callable[[Event], None]) -> None:
        self._key, self._name, self._listen = key, name, listen
        self._last = 0.0
        self._id: Any = None
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        self._listen(Event(self._name, "progress", progress=progress))
        with self._lock:
            now = time.monotonic()
            if now - self._last < _PROGRESS_SECONDS and progress.step != progress.total:
                return
            self._last = now
            values = watched(progress.values)
            if progress.total == 0:
                get_run_logger().info(f"{progress.step}  {values}")
                return
            get_run_logger().info(f"{progress.step}/{progress.total}  {values}")
            percent = 100 * min(1.0, progress.step / progress.total)
            if self._id is None:
                self._id = create_progress_artifact(percent, key=f"{self._key}-progress", description=values or self._name)
            else:
                update_progress_artifact(self._id, percent, description=values or self._name)


def artifact_key(plan: str, name: str) -> str:
    """A key the UI accepts: lower case letters, digits and dashes.

    >>> artifact_key("My plan_2", "scores-base")
    'my-plan-2-scores-base'
    """
    return re.sub(r"[^a-z0-9]+", "-", f"{plan}-{name}".lower()).strip("-")
