"""Human review without Prefect's flows: the evidence on a plan, and what `align gates`, `approve` and `reject` do.

A decision is kept in the store by the digest of what was decided on (`tasks.review`), so no run asks for it twice.  A run that
waits is resumed with it; the run hears it whichever way it was given.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console import me, out
from flows.execute import look
from flows.explain import Step
from flows.inspect import echo_json, print_verdict, read_verdict
from flows.plan import Plan
from flows.server import prepare, shown
from flows.task_pipeline import AnyPlan, load
from flows.task_plan import TaskPlan
from tasks.core.errors import DataError, GateError, MachineError, SpecError
from tasks.core.store import Artifact, Store
from tasks.evidence import champion_of, page
from tasks.release import ReleaseSpec, Ruling, ruling
from tasks.review import (
    DONE,
    Action,
    Decision,
    Question,
    Subject,
    decide,
    evidence_file,
    expire,
    history,
    keep_evidence,
    question_of,
    questions,
    said,
    standing,
    utc,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

PAUSE = "review-"
"""what the keys of our pauses begin with"""


@dataclass(frozen=True)
class Judged:
    """A plan whose verdict is there, as the store sees it now."""

    plan: AnyPlan
    store: Store
    inputs: dict[str, Artifact]
    """what its release would be made of"""
    ruling: Ruling

    @property
    def subject(self) -> Subject:
        """What a decision on it would be on."""
        return Subject.of(self.inputs["verdict"], self.inputs["policy"])

    @property
    def said(self) -> str:
        """pass, review or fail."""
        return read_verdict(self.inputs["verdict"])["verdict"]

    def evidence(self) -> str:
        """The page on it."""
        channel = self.plan.release.channel
        return page(self.plan.name, channel, self.inputs, champion_of(self.store, channel))


def judged(plan: AnyPlan) -> Judged | None:
    """The plan with its verdict, or None where it was not judged as data and settings are now."""
    release = look(plan)["release"]
    inputs = {name: step.artifact for name, step in release.inputs.items() if isinstance(step, Step)}
    found = {name: artifact for name, artifact in inputs.items() if artifact}
    if len(found) < len(inputs):
        return None
    store, spec = plan.workshop().store, release.spec
    assert isinstance(spec, ReleaseSpec)
    return Judged(plan, store, found, ruling(store, spec, found["verdict"], found["policy"]))


def gates(target: str, overrides: Sequence[str], store: Path, *, json_output: bool) -> None:
    """Print the verdict on a plan, or what a run asks, with the evidence and the decisions on it."""
    if not _is_plan(target):
        _gates_of_run(Store(store), target, json_output=json_output)
        return
    found = judged(load(Path(target), overrides))
    if found is None:
        raise DataError(f"{target}: not judged yet under these settings; `align run {target}` does it")
    decisions = history(found.store, found.subject)
    text = found.evidence()
    if json_output:
        evidence = {"digest": keep_evidence(found.store, text), "subject": found.subject.digest}
        verdict = read_verdict(found.inputs["verdict"])
        echo_json({**verdict, "evidence": evidence, "decisions": [decision.model_dump(mode="json") for decision in decisions]})
        return
    print_verdict(out(), found.inputs["verdict"])
    _print(text, decisions)


def _gates_of_run(store: Store, run: str, *, json_output: bool) -> None:
    question = question_of(store, run)
    if question is None:
        raise SpecError(f"{run}: no plan file, and no run of {store.root} that waits for a decision is called so")
    text = evidence_file(store, question.evidence).read_text(encoding="utf-8")
    decisions = history(store, question.subject)
    if json_output:
        echo_json({**question.model_dump(mode="json"), "decisions": [one.model_dump(mode="json") for one in decisions]})
    else:
        _print(text, decisions, whole=True)
        _say(f"\n{question.run} waits until {question.until[:16].replace('T', ' ')} UTC")


def _print(text: str, decisions: Sequence[Decision], *, whole: bool = False) -> None:
    """The page in a terminal: without its pictures, and without the gates where a better table has shown them."""
    from rich.markdown import Markdown

    text = re.sub(r"!\[([^\]]*)\]\(data:[^)]*\)", "", text)
    text = re.sub(r"(?<=[_.])<br>", "", text).replace("<br>", " ")
    if not whole:
        _, _, rest = text.partition("### Gates")
        text = rest[rest.index("\n### ") :] if "\n### " in rest else ""
    console = out()
    console.print(Markdown(text))
    for decision in decisions:
        console.print(decision.sentence, style="bold", markup=False)


def resolve(target: str, action: Action, why: str, by: str | None, overrides: Sequence[str], store: Path) -> None:
    """Decide on a plan, or on what a run that waits asks, and tell every run that waits for it."""
    why, by = said(why, by if by is not None else me())
    if _is_plan(target):
        _resolve_plan(Path(target), action, why, by, overrides)
    else:
        if overrides:
            raise SpecError(f"--set {overrides[0]}: {target} is a run, whose settings are its own; leave --set out")
        _resolve_run(target, action, why, by, Store(store))


def _resolve_plan(path: Path, action: Action, why: str, by: str, overrides: Sequence[str]) -> None:
    found = judged(load(path, overrides))
    if found is None:
        raise DataError(f"{path}: not judged as data and settings are now, so nothing is there to decide; `align run {path}`")
    if not found.ruling.asked:
        forbidden = "no person can allow what a gate forbids; change the bound if it is wrong"
        why_not = forbidden if found.said == "fail" else "nobody is asked, `align run` releases it"
        raise SpecError(f"{path}: the verdict is {found.said}: {why_not}")
    waiting = [question for question in questions(found.store) if question.subject == found.subject]
    standing(found.store, found.subject)  # what is late is a rejection first
    evidence = keep_evidence(found.store, found.evidence())
    decision = _decision(action, why, by, found.subject, evidence, waiting[0].run if waiting else None)
    decide(found.store, decision)
    _say(f"{path}: {decision.sentence}")
    told = [question.run for question in waiting if _tell(found.store, question, decision)]
    for run in told:
        _say(f"{run}: a worker goes on with it")
    if not told and action == "approve":
        _say(f"`align run {path}` releases it from the store")


def _tell(store: Store, question: Question, decision: Decision) -> bool:
    """Resume the run that asks `question`; False where it does not wait any more, or its server is not there."""
    if prepare(store.root) is None:
        return False
    with _client() as client:
        run = _run(client, question.run_id)
        return run is not None and _waits(run) and _resume(client, run, decision.action, decision.why, decision.by)


def _decision(action: Action, why: str, by: str, subject: Subject, evidence: str, run: str | None) -> Decision:
    return Decision(action=action, subject=subject, evidence=evidence, by=by, why=why, when=utc(), how="command", run=run)


def _say(line: str) -> None:
    out().print(line, markup=False, soft_wrap=True)


def _resolve_run(name: str, action: Action, why: str, by: str, store: Store) -> None:
    url = prepare(store.root)
    if url is None:
        raise MachineError(f"{name}: no plan file, and no Prefect server runs whose run it could be; start it with `align ui`")
    with _client() as client:
        run = _run(client, name)
        if run is None:
            raise SpecError(f"{name}: no plan file, and {shown(url).removesuffix('/api')} knows no one run of this name or id")
        if not _waits(run):
            raise SpecError(_over(run, store))
        question = question_of(store, str(run.id))
        if question and action == "approve":
            _refuse_changed(run, question)
        if not _resume(client, run, action, why, by):
            raise SpecError(_over(_run(client, str(run.id)) or run, store))
    if question:  # else its store is elsewhere: the run keeps what it hears
        with suppress(SpecError):  # the run was faster
            decide(store, _decision(action, why, by, question.subject, question.evidence, run.name))
    _say(f"{run.name}: {DONE[action]} by {by}; a worker goes on with it")


def _refuse_changed(run: "FlowRun", question: Question) -> None:
    """Raise GateError if the artifacts that the run asks about are not what the plan stands for now."""
    raw: dict[str, Any] = run.parameters["plan"]
    found = judged((TaskPlan if "task" in raw else Plan).model_validate(raw))
    if found is None or found.subject != question.subject:
        raise GateError(
            f"{run.name}: what it asks about has changed since, so an approval would not hold; reject it, and run the plan again"
        )


def _over(run: "FlowRun", store: Store) -> str:
    """Why a run that does not wait cannot be decided on."""
    state = run.state.name if run.state else "unknown"
    question = question_of(store, str(run.id))
    if question and (expire(store, question) or question.state == "late"):
        return f"{run.name}: its time to decide ended on {question.until[:16].replace('T', ' ')} UTC; {_AFRESH}"
    if run.state and run.state.is_final():
        if run.state.is_failed() and "never resumed" in (run.state.message or ""):
            return f"{run.name}: its time to decide is over; {_AFRESH}"
        return f"{run.name}: it has ended ({state}) and waits for nothing; {_AFRESH}"
    if run.state and run.state.is_paused():
        return f"{run.name}: it is {state}, and not by a question of ours; it does not ask for a decision"
    return f"{run.name}: it is {state}: it does not ask yet, or somebody has just decided"


_AFRESH = "to decide on what it made, `align approve PLAN` or `align reject PLAN`"


def _client() -> "SyncPrefectClient":
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _run(client: "SyncPrefectClient", name: str) -> "FlowRun | None":
    """The one flow run of this id or name."""
    from uuid import UUID

    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_flow_run(UUID(name))
    except ObjectNotFound:
        return None
    except ValueError:  # not an id
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return found[0] if len(found) == 1 else None


def _waits(run: "FlowRun") -> bool:
    """Whether it is suspended by our question, and not by somebody else's."""
    state = run.state
    return bool(state and state.is_paused() and (state.state_details.pause_key or "").startswith(PAUSE))


def _resume(client: "SyncPrefectClient", run: "FlowRun", action: Action, why: str, by: str) -> bool:
    """Answer the form of `run`; False where somebody or the clock was first."""
    answer = {"decision": action, "reviewer": by, "reason": why}
    return client.resume_flow_run(run.id, run_input=answer).status.value == "ACCEPT"


def _is_plan(target: str) -> bool:
    return target.endswith((".yaml", ".yml")) or Path(target).is_file()
