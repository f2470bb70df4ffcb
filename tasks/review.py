"""What people decide about a verdict: records that are never changed, and which of them stands.

A decision is on a `Subject`, the digests of a verdict and of the policy it is about: artifacts that came out otherwise are
another subject, which nobody decided on.  `<store>/.decisions/` holds `<subject>/<number>.json` (the decisions, each naming the
digest of the one before), `evidence/<digest>.md` (what people were shown) and `asked/<flow run>.json` (runs that wait for one).
"""

import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tasks.core.errors import DataError, SpecError
from tasks.core.files import file_digest, sync, write_atomic, write_json
from tasks.core.spec import Spec, canonical, sha256
from tasks.core.store import Artifact, Store

Action = Literal["approve", "reject"]
Approval = Literal["review", "always"]
NOBODY = "nobody"
"""whose the rejection is that follows from silence"""
MIN_NAME = 2
MIN_WHY = 3
_LONGEST = 2000
"""characters of a reason; more is a document, and belongs elsewhere"""
_UNPRINTED = "[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]"
"""control characters, and those that turn the direction of what follows"""
DONE: dict[Action, str] = {"approve": "approved", "reject": "rejected"}


class Subject(Spec):
    """What is decided on."""

    verdict: str = Field(pattern=r"^[0-9a-f]{64}$")
    """digest of the verdict"""
    policy: str = Field(pattern=r"^[0-9a-f]{64}$")
    """digest of the policy that would be released"""

    @classmethod
    def of(cls, verdict: Artifact, policy: Artifact) -> "Subject":
        """The subject that two artifacts are."""
        return cls(verdict=verdict.digest, policy=policy.digest)

    @property
    def digest(self) -> str:
        """sha256 of both."""
        return sha256(canonical(self))


class Decision(Spec):
    """Who decided what, when and why, and on which evidence."""

    action: Action
    subject: Subject
    evidence: str
    """digest of the page that was shown"""
    by: str
    why: str
    when: str
    """UTC, ISO 8601"""
    how: Literal["form", "command", "timeout"]
    """the form of the UI, `align approve` or `align reject`, or nobody in time"""
    run: str | None = None
    """name of the flow run that asked"""
    previous: str | None = None
    """digest of the record before this one on the same subject"""

    @property
    def sentence(self) -> str:
        """All of it for people."""
        return f"{DONE[self.action]} by {self.by} on {self.when[:16].replace('T', ' ')} UTC: {self.why}"


class Question(Spec):
    """A flow run that waits for a decision."""

    run_id: str
    run: str
    plan: str
    subject: Subject
    evidence: str
    key: str
    """of the pause on the server"""
    since: str
    until: str
    """UTC, ISO 8601: later, nobody in time has rejected it"""
    made_of: tuple[str, ...] = ()
    """artifacts that the release would be made of, as `kind/key`; garbage collection keeps them"""
    state: Literal["open", "late", "answered"] = "open"
    """late: its time is over; an answer that was given before, and nobody was there to hear, still counts"""

    @property
    def days(self) -> float:
        """How long people had."""
        return (datetime.fromisoformat(self.until) - datetime.fromisoformat(self.since)).total_seconds() / 86_400

    def late(self, now: str | None = None) -> bool:
        """Whether its time is over."""
        return self.until <= (now or utc())


def utc() -> str:
    """Now, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def said(why: str, by: str) -> tuple[str, str]:
    """Reason and name on one line each.  Raises SpecError where either says nothing."""
    why, by = " ".join(why.split()), " ".join(by.split())
    if len(why) < MIN_WHY:
        raise SpecError('--why: a decision is kept with its reason, so give one, for example --why "reads better, no longer"')
    if len(why) > _LONGEST:
        raise SpecError(f"--why: {len(why):,} characters; say it in {_LONGEST:,}, and keep the rest where it can be read")
    if len(by) < MIN_NAME:
        raise SpecError("--by: a decision is kept with a name, so give yours, for example --by ana")
    return why, by


def decide(store: Store, decision: Decision) -> Path:
    """Keep `decision` as the latest on its subject and return its file; SpecError if that is how it stands already.

    Of several at once one is kept first, and the others are kept after it or refused by it.
    """
    folder = _folder(store, decision.subject)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        files = _files(folder)
        last = read(files[-1]) if files else None
        if last and last.action == decision.action:
            raise SpecError(f"{DONE[last.action]} already, nothing is changed: {last.sentence}")
        record = decision.model_copy(update={"previous": file_digest(files[-1]) if files else None})
        draft = folder / f".{os.getpid()}.{time.monotonic_ns()}"
        write_json(draft, record.model_dump(mode="json"))
        try:
            place = folder / f"{len(files) + 1:04}.json"
            place.hardlink_to(draft)  # fails where another was first
        except FileExistsError:
            continue
        finally:
            draft.unlink()
        sync(folder)
        return place


def history(store: Store, subject: Subject) -> list[Decision]:
    """Every decision on `subject`, oldest first.  Raises DataError where a record was altered or is gone."""
    found: list[Decision] = []
    previous = None
    for number, path in enumerate(_files(_folder(store, subject)), start=1):
        record = read(path)
        if record.previous != previous or record.subject != subject or path.stem != f"{number:04}":
            raise DataError(f"{path}: the records before it were altered; restore {path.parent} from a backup, or delete it")
        found.append(record)
        previous = file_digest(path)
    return found


def standing(store: Store, subject: Subject) -> tuple[Decision, Path] | None:
    """The decision that counts, the latest, and its file; None if nobody decided and somebody still may."""
    for question in questions(store):
        if question.subject == subject:
            expire(store, question)
    if not (found := history(store, subject)):
        return None
    return found[-1], _folder(store, subject) / f"{len(found):04}.json"


def expire(store: Store, question: Question, now: str | None = None) -> bool:
    """Whether the time of `question` is over.  Silence until then is a rejection, unless somebody decided since it was asked."""
    if question.state != "open" or not question.late(now):
        return False
    if not any(decision.when >= question.since for decision in history(store, question.subject)):
        days = f"{question.days:.3g} {'day' if question.days == 1 else 'days'}"
        silence = Decision(
            action="reject", subject=question.subject, evidence=question.evidence, by=NOBODY, when=question.until,
            why=f"no decision within {days}", how="timeout", run=question.run,
        )  # fmt: skip
        with suppress(SpecError):  # rejected already, before it was asked again
            decide(store, silence)
    _note(store, question.model_copy(update={"state": "late"}))
    return True


def read(path: Path) -> Decision:
    """The decision in a file.  Raises DataError where it is none."""
    try:
        return Decision.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DataError(f"{path}: not a decision ({str(error).splitlines()[0]}); restore it from a backup") from error


def keep_evidence(store: Store, page: str) -> str:
    """Keep what a person is shown; its digest."""
    digest = sha256(page)
    path = evidence_file(store, digest)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page)
    return digest


def evidence_file(store: Store, digest: str) -> Path:
    """Where the page of this digest is kept."""
    return store.folder("decisions") / "evidence" / f"{digest}.md"


def ask(store: Store, question: Question) -> None:
    """Note that a flow run waits."""
    _note(store, question)


def answered(store: Store, question: Question) -> None:
    """Note that it does not wait any more."""
    _note(store, question.model_copy(update={"state": "answered"}))


def questions(store: Store, *, late: bool = False) -> list[Question]:
    """Runs that wait, oldest first; with `late` those too whose time is over and that heard nothing."""
    wanted = ("open", "late") if late else ("open",)
    found: list[Question] = []
    for path in sorted((store.folder("decisions") / "asked").glob("*.json")):
        try:
            found.append(Question.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: not a question ({str(error).splitlines()[0]}); delete it and run the plan again") from error
    return sorted((question for question in found if question.state in wanted), key=lambda question: question.since)


def question_of(store: Store, run: str) -> Question | None:
    """What the flow run `run`, by its id or name, waits for, or waited for in vain; None if it does not wait."""
    return next((question for question in questions(store, late=True) if run in (question.run_id, question.run)), None)


def inert(text: str) -> str:
    r"""`text` so that Markdown, HTML and addresses in it are shown and not followed: it came from data or from a model.

    Backslashes, which every reader of Markdown here takes; Prefect's pages show numeric entities as they are written.

    >>> print(inert("<b>*hi*</b> | http://a.b"))
    \<b\>\*hi\*\</b\> \| http\://a.b
    """
    text = re.sub(_UNPRINTED, " ", text)
    text = re.sub(r"[\\`*_\[\]<>#|~@!$&]", lambda found: f"\\{found[0]}", text)
    return text.replace("://", "\\://").replace("www.", "www\\.")


def _folder(store: Store, subject: Subject) -> Path:
    return store.folder("decisions") / subject.digest


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


def _note(store: Store, question: Question) -> None:
    path = store.folder("decisions") / "asked" / f"{question.run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, question.model_dump(mode="json"))
