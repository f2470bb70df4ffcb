"""`align run` and `align rerun`: answer from the store where that is enough, else run the flow."""

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from evals.judge_client import Judge
from flows.champion import looked_up
from flows.console import Watch, duration, me, out
from flows.consult import Consulted, Undecided
from flows.explain import Explain, Step
from flows.inspect import print_verdict, read_verdict
from flows.plan_parts import Asked
from flows.server import prepare, shown, temporary
from flows.task_pipeline import AnyPlan, load, pipeline
from tasks.channels import channel, promote, standing
from tasks.core.errors import AlignError, GateError, SpecError
from tasks.core.store import Artifact
from tasks.judging import JUDGING
from tasks.pairwise import PAIRWISE
from tasks.release import ReleaseSpec, ruling
from tasks.rollouts import OnlineSpec
from tasks.vllm_server import VllmServer


def execute(
    path: Path, overrides: Sequence[str], *, stage: str | None = None, record: bool = False, json_output: bool = False
) -> None:
    """Run the plan; with `stage`, that one afresh.  Raises GateError if a gate says no."""
    started = time.monotonic()
    plan = load(path, overrides)
    steps = look(plan)
    if stage is not None and stage not in steps:
        raise SpecError(f"{stage}: the plan has no such stage; it has {', '.join(steps)}")
    console = Console(stderr=True, highlight=False) if json_output else out()  # for machines, standard output holds JSON alone
    try:
        if stage is None and not record and up_to_date(plan, steps, console=console):
            result = "up to date"
        else:
            run_flow(plan, stage, console=console)
            steps = look(plan)
            result = "released"
    except Undecided as error:
        raise error.at(path, overrides) from None
    _tell(plan, steps, result, time.monotonic() - started, json_output=json_output)


def look(plan: AnyPlan) -> dict[str, Step]:
    """Every stage as the store sees it now, by name."""
    explained = Explain(plan.workshop())
    pipeline(plan, Consulted(explained), looked_up(plan, explained.workshop.store))
    return {step.name: step for step in explained.steps}


def require_judge(steps: Iterable[Step], rerun: str | None = None) -> None:
    """Raise MachineError where a stage that is missing, or `rerun`, asks a judge that nobody named: not after hours."""
    if any(_due(step, rerun) and step.stage in (JUDGING, PAIRWISE) for step in steps):
        Judge.from_environment()


def require_vllm(steps: Iterable[Step], rerun: str | None = None) -> None:
    """Raise MachineError where a stage that is missing, or `rerun`, needs answers by a vLLM server that nobody named."""
    if any(_due(step, rerun) and isinstance(step.spec, OnlineSpec) and step.spec.engine == "vllm" for step in steps):
        VllmServer.from_environment()


def _due(step: Step, rerun: str | None) -> bool:
    return step.artifact is None or step.name == rerun


def up_to_date(plan: AnyPlan, steps: dict[str, Step], *, console: Console) -> bool:
    """Whether the store alone can answer.  Raises GateError if its answer is that a gate or a person said no, or nobody yes."""
    missing = [name for name, step in steps.items() if step.artifact is None]
    if missing == ["release"]:
        _refuse(plan, steps["release"], console)
    if missing:
        return False
    release = steps["release"].artifact
    assert release is not None
    promote(plan.workshop().store, plan.release.channel, release, why=f"plan {plan.name} finds it built", by=me())
    share(plan, steps.values(), console)  # last: a storage that is away may keep it waiting
    return True


def share(plan: Asked, steps: Iterable[Step], console: Console) -> None:
    """What a run does with `steps` that it finds built: those that `store.remote` lacks are pushed there."""
    built = [step.artifact for step in steps if step.artifact]
    plan.workshop().share(built, lambda line: console.print(line, markup=False, soft_wrap=True))


def _refuse(plan: AnyPlan, release: Step, console: Console) -> None:
    """Raise GateError where the release is missing because it may not be."""
    made = {name: step.artifact for name, step in release.inputs.items() if isinstance(step, Step)}
    verdict, policy = made["verdict"], made["policy"]
    assert verdict is not None
    assert policy is not None
    assert isinstance(release.spec, ReleaseSpec)
    found = ruling(plan.workshop().store, release.spec, verdict, policy)
    if found.refusal:
        print_verdict(console, verdict)
        no = f"{plan.name}: {found.refusal}"
        raise Undecided(no) if found.open else GateError(no)


def run_flow(plan: AnyPlan, stage: str | None, *, console: Console) -> None:
    """Run the plan as a Prefect flow in this process, shown on `console`."""

    def judged() -> None:
        with suppress(AlignError):  # a plan that cannot be looked up has said why already
            if verdict := look(plan)["verdict"].artifact:
                print_verdict(console, verdict)

    with watched(plan, console, judged):
        from flows.align import align

        align(plan, stage)


@contextmanager
def watched(plan: Asked, console: Console, then: Callable[[], None] = lambda: None) -> Generator[None]:
    """A server to record to and live lines on `console`, while a flow over `plan` runs in the body.

    However it ends, `then` is called when the server is gone, and where the report lies is said last.
    """
    server = prepare(plan.store.root)
    where = f"recorded at {shown(server).removesuffix('/api')}" if server else "no server runs, so a temporary one records it"
    console.print(f"[bold]{plan.name}[/bold]  store {plan.store.root}  ({where})")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended politely is an interrupt too
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = (
        "CRITICAL"  # its lines go to the server; `Watch` says them in fewer words
    )
    watch = Watch(console)
    try:
        with nullcontext() if server else temporary(plan.store.root):
            from flows.running import LISTENERS

            LISTENERS.append(watch)
            try:
                with watch.showing():
                    yield
            finally:
                LISTENERS.remove(watch)
    finally:
        then()
        if watch.report:
            console.print(f"report: {watch.report}", markup=False, soft_wrap=True)


def _tell(plan: AnyPlan, steps: dict[str, Step], result: str, seconds: float, *, json_output: bool) -> None:
    release: Artifact | None = steps["release"].artifact
    assert release is not None
    points_to = channel(plan.workshop().store, plan.release.channel)
    if json_output:
        import json

        import typer

        verdict = read_verdict(steps["verdict"].artifact)
        typer.echo(
            json.dumps(
                {
                    "result": result,
                    "release": release.key,
                    "channel": plan.release.channel,
                    "points_to": points_to,
                    "verdict": verdict,
                }
            )
        )
        return
    there = "it was superseded" if release.key in standing(plan.workshop().store, plan.release.channel) else "it was rolled back"
    note = "" if points_to == release.key else f" (the channel points to {points_to[:12] if points_to else 'nothing'}: {there})"
    out().print(f"[bold green]{result}[/]: {plan.release.channel} = release {release.key[:12]}{note}, in {duration(seconds)}")
