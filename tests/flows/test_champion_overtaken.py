"""Two challengers of one champion, one after another or at once, and a person who decides meanwhile: nobody overtakes unseen."""

import multiprocessing
import threading

import pytest
from challenging import AHEAD, SOUND, moves, plan_of, run

from flows.review import judged
from tasks.channels import channel, promote, rollback
from tasks.core.errors import GateError
from tasks.core.store import Store
from tasks.evidence import champion_of, page
from tasks.review import Subject

ASKS = {"approval": "always"}


def waiting(tmp_path, build):
    """A plan whose verdict is there and which waits for a person; and what it would be decided on."""
    run(plan_of(tmp_path), build)
    asking = plan_of(tmp_path, 0.2, release=ASKS)
    with pytest.raises(GateError, match="this plan asks a person"):
        run(asking, build)
    return asking, Subject.of(build.made["verdict"], build.made["sft"])


def test_the_evidence_names_the_champion_and_shows_answers_beside_its_own(tmp_path, build):
    asking, subject = waiting(tmp_path, build)
    found = judged(asking)
    assert found.subject == subject
    text = page(asking.name, "champion", found.inputs, champion_of(build.workshop.store, "champion"))
    assert f"The champion is release {channel(build.workshop.store, 'champion')[:12]} with policy" in text
    assert "- **sft** learning\\_rate: 0.1 -\\> 0.2" in text
    assert "champion: " not in text.partition("### What changed")[2].partition("### ")[0]  # whom it met is no change of the plan


def test_an_approval_is_refused_once_another_champion_stands(tmp_path, build):
    asking, _ = waiting(tmp_path, build)
    run(plan_of(tmp_path, 0.3), build)
    assert judged(plan_of(tmp_path, 0.2, release=ASKS)) is None  # so `hear` and `align approve RUN` say that it has changed
    rollback(build.workshop.store, "champion", why="tone")
    assert judged(plan_of(tmp_path, 0.2, release=ASKS)).plan == asking


def test_a_run_that_hears_an_approval_after_the_champion_changed_fails(tmp_path, build, monkeypatch):
    from flows import reviewing
    from tasks.review import Question

    _, subject = waiting(tmp_path, build)
    question = Question(run_id="1", run="r", plan="stand-in", subject=subject, evidence="e" * 64, key="k",
                        since="2026-01-01T00:00:00+00:00", until="2126-01-01T00:00:00+00:00")  # fmt: skip
    answer = reviewing.Review(decision="approve", reviewer="ana", reason="reads better")
    monkeypatch.setattr(reviewing, "question_of", lambda *_: question)
    monkeypatch.setattr(reviewing, "_answer", lambda _: answer)
    monkeypatch.setattr(reviewing, "_id", lambda: "1")
    run(plan_of(tmp_path, 0.3), build)
    review = reviewing.Reviewing(plan_of(tmp_path, 0.2, release=ASKS), build, lambda: None)
    with pytest.raises(GateError, match=r"it was approved by ana on .*, but what that was about has changed since"):
        review.hear()


def challengers(tmp_path, build, **changed):
    """Two releases that were judged at once, against the same."""
    first = run(plan_of(tmp_path, **changed), build)
    return first, [run(plan_of(tmp_path, quality, **changed), build, land=False) for quality in (0.2, 0.3)]


def test_of_two_challengers_at_once_one_lands_and_the_other_is_told_whom_to_meet(tmp_path, build):
    first, both = challengers(tmp_path, build)
    said = []

    def land(release):
        try:
            promote(build.workshop.store, "champion", release)
        except GateError as error:
            said.append(str(error))

    threads = [threading.Thread(target=land, args=(release,)) for release in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [sentence] = said
    now = channel(build.workshop.store, "champion")
    [late] = [release.key for release in both if release.key != now]
    assert moves(build) == [("promote", first.key), ("promote", now)]
    assert sentence == (
        f"champion: release {late[:12]} was judged against release {first.key[:12]}, and the channel moved to release {now[:12]} "
        "since; run again and it is compared with that"
    )
    assert promote(build.workshop.store, "champion", build.workshop.store.at(f"release/{late}"), again=True)  # a person may


def _land(root, key, codes):
    store = Store(root)
    try:
        promote(store, "champion", store.at(f"release/{key}"))
        codes.put("landed")
    except GateError:
        codes.put("late")


@pytest.mark.parametrize(("gates", "ends"), [([SOUND, AHEAD], ["landed", "late"]), ([SOUND], ["landed", "landed"])])
def test_two_processes_at_once_leave_a_whole_history(tmp_path, build, gates, ends):
    first, both = challengers(tmp_path, build, gates=gates)
    spawn = multiprocessing.get_context("spawn")
    codes = spawn.Queue()
    processes = [spawn.Process(target=_land, args=(tmp_path / "store", release.key, codes)) for release in both]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(codes.get(timeout=60) for _ in both) == ends
    assert [action for action, _ in moves(build)] == ["promote"] * (1 + ends.count("landed"))
    assert moves(build)[0][1] == first.key
    assert len({key for _, key in moves(build)}) == len(moves(build))


def test_of_two_first_releases_one_is_the_champion_and_the_other_must_meet_it(tmp_path, build):
    both = [run(plan_of(tmp_path, quality), build, land=False) for quality in (0.1, 0.2)]
    assert promote(build.workshop.store, "champion", both[0])
    with pytest.raises(GateError, match=f"judged against no champion, and the channel moved to release {both[0].key[:12]} since"):
        promote(build.workshop.store, "champion", both[1])
    release = run(plan_of(tmp_path, 0.2), build)
    assert moves(build) == [("promote", both[0].key), ("promote", release.key)]
