"""The human gate of a flow: it asks once, suspended, and a run that was resumed hears the answer before it builds anything.

Prefect's own memory of answers is not enough: a retry, another run of the same plan and a command line all have to see them.  So
the answer is kept in the store by the digest of what was decided on, and asked for only where nothing is kept.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.futures import PrefectFuture
from prefect.input import RunInput, read_flow_run_input
from prefect.input.run_input import keyset_from_paused_state
from prefect.runtime import deployment, flow_run
from prefect.states import Suspended
from pydantic import Field

from flows.consult import Undecided
from flows.review import PAUSE, judged
from flows.task_pipeline import AnyPlan
from tasks.core.contract import Stage
from tasks.core.errors import GateError, SpecError
from tasks.core.spec import Spec
from tasks.core.store import Artifact
from tasks.evidence import champion_of, page
from tasks.release import DECISION, RELEASE, ReleaseSpec, ruling
from tasks.review import (
    MIN_NAME,
    MIN_WHY,
    Decision,
    Question,
    Subject,
    answered,
    ask,
    decide,
    history,
    keep_evidence,
    question_of,
    questions,
    utc,
)
from tasks.stage import Submit, artifact_key


class Review(RunInput):
    """The form.  Nothing has a default, so that no click without reading decides."""

    decision: Literal["approve", "reject"] = Field(title="Decision", description="reject leaves the channel where it is")
    reviewer: str = Field(title="Your name", min_length=MIN_NAME, pattern=r"\S", description="kept with the release")
    reason: str = Field(title="Why", min_length=MIN_WHY, pattern=r"\S", description="kept with the release and in its model card")


class Reviewing:
    """Submits stages; before the release it asks a person, where the verdict or the plan wants one."""

    def __init__(self, plan: AnyPlan, build: Submit, settle: Callable[[], None]) -> None:
        """Submit with `build`; `settle` is called before the run is suspended."""
        self._plan, self._build, self._settle = plan, build, settle
        self._store = build.workshop.store

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> PrefectFuture[str]:
        """Submit `stage`.  Raises GateError, or suspends the run, where a release needs a decision that is not there."""
        if stage is RELEASE and (artifacts := self._finished(inputs)):
            assert isinstance(spec, ReleaseSpec)
            found = ruling(self._store, spec, artifacts["verdict"], artifacts["policy"])
            if found.open:
                self._ask(found.refusal or "", artifacts)
            if found.asked and found.refusal:
                raise GateError(f"{self._plan.name}: {found.refusal}")
            if found.approval:
                inputs = {**inputs, DECISION: found.approval}
        return self._build(stage, spec, inputs, name=name)

    def hear(self) -> None:
        """If this run was suspended and somebody decided: keep it, and go on only if it still is about what is there.

        Nothing is built here: what a person has looked at is released as it was, or not at all.
        """
        question = question_of(self._store, _id())
        answer = _answer(question) if question else None
        if question is None or answer is None:
            return
        why, by = " ".join(answer.reason.split()), " ".join(answer.reviewer.split())
        heard = Decision(
            action=answer.decision, subject=question.subject, evidence=question.evidence, by=by, why=why, when=utc(), how="form",
            run=question.run,
        )  # fmt: skip
        with suppress(SpecError):  # `align approve` kept it already
            decide(self._store, heard)
        decision = history(self._store, question.subject)[-1]
        answered(self._store, question)
        if decision.action == "reject":
            raise GateError(f"{self._plan.name}: not released, {decision.sentence}")
        now = judged(self._plan)
        if now is None or now.subject != question.subject:
            raise GateError(
                f"{self._plan.name}: not released: it was {decision.sentence}, but what that was about has changed since; "
                "run the plan again, and it asks about what is there now"
            )

    def _finished(self, inputs: Mapping[str, PrefectFuture[str] | Artifact]) -> dict[str, Artifact] | None:
        """The inputs of the release, or None if one failed, which the release then says."""
        futures = {name: given for name, given in inputs.items() if not isinstance(given, Artifact)}
        for future in futures.values():
            future.wait()
        if not all(future.state.is_completed() for future in futures.values()):
            return None
        return {name: given if isinstance(given, Artifact) else self._store.at(given.result()) for name, given in inputs.items()}

    def _ask(self, no: str, artifacts: Mapping[str, Artifact]) -> None:
        """Suspend this run until somebody decides; GateError where it cannot be, or where another run asks already."""
        plan, asked = self._plan, self._plan.release
        no = f"{plan.name}: {no}"
        text = page(plan.name, asked.channel, artifacts, champion_of(self._store, asked.channel))
        evidence = keep_evidence(self._store, text)
        key = artifact_key(plan.name, "review")
        create_markdown_artifact(text, key=key, description="what a person decides on")
        if not deployment.id or flow_run.parent_flow_run_id:  # pyright: ignore[reportAttributeAccessIssue]
            raise Undecided(no)
        subject = Subject.of(artifacts["verdict"], artifacts["policy"])
        for other in questions(self._store):
            if other.subject == subject and other.run_id != _id():
                if _still_waits(other):
                    raise Undecided(no, more=f"{other.run} asks for the decision already, answer it there, or")
                answered(self._store, other)
        now = datetime.now(UTC)
        until = now + timedelta(days=asked.review_days)
        question = Question(
            run_id=_id(), run=str(flow_run.name), plan=plan.name, subject=subject, evidence=evidence,  # pyright: ignore
            key=f"{PAUSE}{subject.digest[:12]}-{now:%Y%m%d%H%M%S%f}", since=now.isoformat(timespec="seconds"),
            until=until.isoformat(timespec="seconds"), made_of=tuple(map(self._store.ref, artifacts.values())),
        )  # fmt: skip
        ask(self._store, question)
        self._settle()
        form = Review.with_initial_data(description=f"[Read this in a wide page](/artifacts/key/{key})\n\n{text}")
        suspend_flow_run(wait_for_input=form, timeout=max(1, round(asked.review_days * 86_400)), key=question.key)
        raise GateError(f"{no}; the server did not suspend this run")


def _id() -> str:
    return str(flow_run.id)  # pyright: ignore[reportAttributeAccessIssue]


def _answer(question: Question) -> Review | None:
    """What somebody put into the form; None where the run goes on for another reason, such as a retry."""
    keys = keyset_from_paused_state(Suspended(timeout_seconds=1, pause_key=question.key))
    value: Any = read_flow_run_input(keys["response"], flow_run_id=UUID(question.run_id))
    return None if value is None else Review.model_validate(value)


def _still_waits(question: Question) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(question.run_id)).state
        except ObjectNotFound:
            return False
    return bool(state and state.is_paused())
