"""Decisions of people: kept in order by what they are on, refused twice, expired by silence, and part of the release."""

import json
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from releasing import GATES, pipeline

from evals.gates import Gate
from tasks.core.build import Workshop
from tasks.core.errors import DataError, GateError, SpecError
from tasks.core.store import Store
from tasks.release import RELEASE, ReleaseSpec, ruling
from tasks.review import (
    Decision,
    Question,
    Subject,
    answered,
    ask,
    decide,
    evidence_file,
    expire,
    history,
    inert,
    keep_evidence,
    question_of,
    questions,
    said,
    standing,
)

SUBJECT = Subject(verdict="a" * 64, policy="b" * 64)
OPEN = (Gate(metric="reward_win_rate", at_least=0.5),)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def shop(store, tmp_path):
    return Workshop(store, tmp_path / "models")


def decision(action="approve", by="ana", why="reads better", subject=SUBJECT, when="2026-11-22T10:00:00+00:00", **more):
    return Decision(action=action, subject=subject, evidence="e" * 64, by=by, why=why, when=when, how="command", **more)


def question(run="7", since="2026-11-22T10:00:00+00:00", days=7.0, subject=SUBJECT):
    until = (datetime.fromisoformat(since) + timedelta(days=days)).isoformat(timespec="seconds")
    return Question(
        run_id=run, run=f"plan-{run}", plan="plan", subject=subject, evidence="e" * 64, key="review-1", since=since, until=until
    )


def test_the_latest_decision_stands_and_the_earlier_ones_are_kept(store):
    assert standing(store, SUBJECT) is None
    decide(store, decision())
    decide(store, decision("reject", by="bo", why="too long"))
    last = decide(store, decision(by="cy", why="not that long"))
    assert [(one.action, one.by) for one in history(store, SUBJECT)] == [("approve", "ana"), ("reject", "bo"), ("approve", "cy")]
    found, file = standing(store, SUBJECT)
    assert (found.by, file) == ("cy", last)
    other = Subject(verdict="c" * 64, policy="b" * 64)  # judged again, and came out otherwise
    assert standing(store, other) is None


def test_the_same_decision_twice_is_refused_with_who_was_first(store):
    decide(store, decision())
    with pytest.raises(SpecError, match=r"approved already, nothing is changed: approved by ana on 2026-11-22 10:00 UTC: reads"):
        decide(store, decision(by="bo"))
    assert len(history(store, SUBJECT)) == 1


def test_of_many_at_once_every_one_is_kept_or_refused(store):
    together = threading.Barrier(12)
    refused = []

    def click(i):
        together.wait()
        try:
            decide(store, decision("approve" if i % 2 else "reject", by=f"person {i}"))
        except SpecError:
            refused.append(i)

    threads = [threading.Thread(target=click, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = history(store, SUBJECT)
    assert len(found) + len(refused) == 12
    assert all(one.action != two.action for one, two in pairwise(found))
    assert not [path for path in (store.root / ".decisions" / SUBJECT.digest).iterdir() if path.name.startswith(".")]


def test_a_record_that_was_altered_or_taken_away_is_noticed(store):
    first = decide(store, decision())
    decide(store, decision("reject"))
    first.write_text(first.read_text().replace("ana", "bob"))
    with pytest.raises(DataError, match=r"0002.json: the records before it were altered"):
        history(store, SUBJECT)
    first.unlink()
    with pytest.raises(DataError, match="the records before it were altered"):
        history(store, SUBJECT)
    first.write_text("{")
    with pytest.raises(DataError, match="not a decision"):
        history(store, SUBJECT)


@pytest.mark.parametrize(
    ("why", "by", "match"),
    [
        ("", "ana", "--why: a decision is kept with its reason"),
        ("  \n ", "ana", "--why"),
        ("fine", " a ", "--by: a decision is kept"),
        ("x" * 2001, "ana", "--why: 2,001 characters; say it in 2,000"),
    ],
)
def test_nobody_decides_without_a_name_and_a_reason(why, by, match):
    with pytest.raises(SpecError, match=match):
        said(why, by)


def test_a_reason_is_one_line():
    assert said(" better,\n and  shorter ", " Ana  B ") == ("better, and shorter", "Ana B")


def test_silence_rejects_once_the_time_is_over_and_not_before(store):
    asked = question()
    ask(store, asked)
    assert not expire(store, asked, now="2026-11-29T09:59:59+00:00")
    assert [one.run for one in questions(store)] == ["plan-7"]
    assert expire(store, asked, now="2026-11-29T10:00:00+00:00")
    [found] = history(store, SUBJECT)
    assert (found.action, found.by, found.how, found.run) == ("reject", "nobody", "timeout", "plan-7")
    assert found.sentence == "rejected by nobody on 2026-11-29 10:00 UTC: no decision within 7 days"
    assert questions(store) == []
    assert question_of(store, "7").state == "late"  # an answer that came in time is still heard
    decide(store, decision())
    assert standing(store, SUBJECT)[0].by == "ana"


def test_what_stands_counts_the_clock(store):
    ask(store, question(since="2026-01-01T00:00:00+00:00", days=1))
    assert standing(store, SUBJECT)[0].sentence == "rejected by nobody on 2026-01-02 00:00 UTC: no decision within 1 day"


def test_silence_changes_nothing_after_somebody_decided(store):
    asked = question()
    ask(store, asked)
    decide(store, decision(when="2026-11-23T00:00:00+00:00"))
    assert expire(store, asked, now="2026-12-24T00:00:00+00:00")
    assert [one.by for one in history(store, SUBJECT)] == ["ana"]


def test_a_run_that_was_answered_waits_no_more(store):
    ask(store, question("7"))
    ask(store, question("8", since="2026-11-22T09:00:00+00:00"))
    assert [one.run_id for one in questions(store)] == ["8", "7"]
    answered(store, question("7"))
    assert [one.run_id for one in questions(store)] == ["8"]
    assert question_of(store, "plan-8").run_id == "8"
    assert question_of(store, "plan-7") is None


def test_evidence_is_kept_once_by_its_digest(store):
    digest = keep_evidence(store, "# page\n")
    assert keep_evidence(store, "# page\n") == digest
    assert evidence_file(store, digest).read_text() == "# page\n"


def test_garbage_collection_leaves_decisions_alone(store):
    from flows.gc import collect, waste

    decide(store, decision())
    ask(store, question())
    keep_evidence(store, "page")
    before = sorted((store.root / ".decisions").rglob("*"))
    assert waste(store, keep_days=0) == []
    collect(store, dry_run=False, keep_days=0, json_output=True)
    assert sorted((store.root / ".decisions").rglob("*")) == before


def test_garbage_collection_keeps_what_a_run_waits_with_and_not_what_was_answered(shop):
    from flows.gc import waste

    made = pipeline(shop, quality=0.0, gates=OPEN)
    asked = question().model_copy(update={"made_of": tuple(map(shop.store.ref, made.values()))})
    ask(shop.store, asked)
    assert waste(shop.store, keep_days=0) == []
    answered(shop.store, asked)
    assert {item.path.name for item in waste(shop.store, keep_days=0)} == {artifact.key for artifact in made.values()}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<img src=x>", r"\<img src=x\>"),
        ("![a](http://b)", r"\!\[a\](http\://b)"),
        ("a|b\\", r"a\|b\\"),
        ("www.x & y@z", r"www\.x \& y\@z"),
        ("one\u202etwo\x00", "one two "),
    ],
)
def test_text_of_a_model_is_shown_and_not_followed(text, shown):
    assert inert(text) == shown


# -- the release ------------------------------------------------------------------------------------------------


def approved(shop, made, action="approve", **more):
    """A decision on what `made` is, kept; its file."""
    subject = Subject.of(made["verdict"], made["policy"])
    return decide(shop.store, decision(action, subject=subject, **more))


def test_an_approved_review_is_released_with_who_when_why_and_the_evidence(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    file = approved(shop, made, by="Ana | B", why="answers *differ* | fine")
    found = ruling(shop.store, ReleaseSpec(name="demo"), made["verdict"], made["policy"])
    assert (found.refusal, found.open, found.approval) == (None, False, file)
    artifact, built = shop.build(RELEASE, ReleaseSpec(name="demo"), {**made, "decision": file})
    assert built
    record = json.loads((artifact.path / "release.json").read_text())
    assert record["approval"] == json.loads(file.read_text())
    assert record["verdict"]["verdict"] == "review"
    assert artifact.metrics["approved_by"] == "Ana | B"
    card = (artifact.path / "README.md").read_text()
    assert r"Approved by **Ana \| B** on 2026-11-22 10:00 UTC:" in card
    assert r"> answers \*differ\* \| fine" in card
    assert "e" * 64 in card


def test_another_approval_is_another_release_and_the_same_one_is_not(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    spec = ReleaseSpec(name="demo")
    first, _ = shop.build(RELEASE, spec, {**made, "decision": approved(shop, made)})
    again, built = shop.build(
        RELEASE, spec, {**made, "decision": standing(shop.store, Subject.of(made["verdict"], made["policy"]))[1]}
    )
    assert (again.key, built) == (first.key, False)
    approved(shop, made, "reject")
    other, _ = shop.build(RELEASE, spec, {**made, "decision": approved(shop, made, by="bo")})
    assert other.key != first.key


def test_a_rejection_is_said_with_who_and_why(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    file = approved(shop, made, "reject", by="bo", why="too long")
    found = ruling(shop.store, ReleaseSpec(name="demo"), made["verdict"], made["policy"])
    assert found.refusal == "not released, rejected by bo on 2026-11-22 10:00 UTC: too long"
    assert (found.open, found.approval) == (False, None)
    with pytest.raises(GateError, match="demo: not released, rejected by bo on 2026-11-22 10:00 UTC: too long"):
        shop.build(RELEASE, ReleaseSpec(name="demo"), {**made, "decision": file})


def test_an_approval_of_something_else_is_refused(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    file = approved(shop, made)
    other = pipeline(shop, quality=0.0, gates=OPEN, seed=7)
    assert ruling(shop.store, ReleaseSpec(name="demo"), other["verdict"], other["policy"]).open
    with pytest.raises(GateError, match=r"what was approved by ana on .* is another verdict or policy; ask again"):
        shop.build(RELEASE, ReleaseSpec(name="demo"), {**other, "decision": file})


def test_nobody_can_allow_what_a_gate_forbids(shop):
    made = pipeline(shop, quality=-1.0, gates=GATES)
    file = approved(shop, made)
    found = ruling(shop.store, ReleaseSpec(name="demo"), made["verdict"], made["policy"])
    assert (found.asked, found.approval) == (False, None)
    assert found.refusal.startswith("not released, the verdict is fail")
    with pytest.raises(GateError, match="the verdict is fail"):
        shop.build(RELEASE, ReleaseSpec(name="demo"), {**made, "decision": file})


def test_a_plan_that_always_asks_waits_for_a_person_even_on_a_pass(shop):
    made = pipeline(shop)
    spec = ReleaseSpec(name="demo", approval="always")
    assert not ruling(shop.store, ReleaseSpec(name="demo"), made["verdict"], made["policy"]).asked
    assert ruling(shop.store, spec, made["verdict"], made["policy"]).open
    with pytest.raises(GateError, match="the verdict is pass, and this plan asks a person to approve it"):
        shop.build(RELEASE, spec, made)
    artifact, _ = shop.build(RELEASE, spec, {**made, "decision": approved(shop, made)})
    assert json.loads((artifact.path / "release.json").read_text())["approval"]["by"] == "ana"


def test_a_release_that_nobody_had_to_approve_says_so(shop):
    artifact, _ = shop.build(RELEASE, ReleaseSpec(name="demo"), pipeline(shop))
    assert json.loads((artifact.path / "release.json").read_text())["approval"] is None
    assert "Approval" not in (artifact.path / "README.md").read_text()


def test_the_clock_of_a_question_is_utc(store):
    now = datetime.now(UTC)
    assert question(since=now.isoformat(timespec="seconds"), days=0.5).days == pytest.approx(0.5)
    assert not question(since=now.isoformat(timespec="seconds"), days=0.5).late()
