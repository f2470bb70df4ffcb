"""Human review from the command line, with and without a server's run that waits: asked once, decided once, trained once."""

import json
import shutil
from dataclasses import replace

import pytest
from serving_runs import start, state, task_states, until, worker
from smoke import PLAN, ended, write_smoke

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]

PARTS = (
    "policy: {max_steps: 4, global_batch: 4, max_length: 1024}\n",
    "reward: {max_steps: 4, global_batch: 4, max_length: 1024}\n",
)
GATE = "{metric: text_perplexity_ratio, at_most: 3, against: base}"
OPEN = "{metric: finished_rate, at_least: 0.2}"
"""the tiny model ends none of its 8 answers by itself, and an interval to 0.37 holds the bound"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory, prefect_server):
    """A plan that trains one policy, run to a verdict that is review: everything but the release is built."""
    smoke = write_smoke(tmp_path_factory.mktemp("review"), prefect_server)
    plan = PLAN.replace(GATE, OPEN)
    for part in PARTS:
        plan = plan.replace(part, "")
    (smoke.folder / "plan.yaml").write_text(plan)
    (smoke.folder / "first.log").write_text(smoke.align("run", "plan.yaml", code=3))
    return smoke


@pytest.fixture
def copy(judged, tmp_path):
    """That plan in a folder of its own."""
    shutil.copytree(judged.folder, tmp_path / "copy", symlinks=True)
    return replace(judged, folder=tmp_path / "copy")


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


def suspended(client, smoke, plan="plan.yaml", *overrides):
    """A deployed run that waits for a person."""
    run = start(client, smoke, plan, *overrides)
    until(lambda: state(client, run).name == "Suspended" or state(client, run).is_final(), 200)
    assert state(client, run).name == "Suspended", state(client, run).message
    return client.read_flow_run(run.id)


def finished(client, run, seconds=150):
    until(lambda: state(client, run).is_final(), seconds)
    return state(client, run)


def release_of(smoke):
    [entry] = json.loads(smoke.align("releases", "--json"))["champion"]
    return json.loads((smoke.store / "release" / entry["release"] / "release.json").read_text())


# -- a run in a terminal ----------------------------------------------------------------------------------------


def test_a_run_in_a_terminal_says_how_to_decide_and_what_to_look_at(judged):
    printed = (judged.folder / "first.log").read_text()
    last = printed.splitlines()[-1]
    assert last.startswith("Undecided: smoke: not released, the verdict is review: finished_rate: need >= 0.2, got 0.000")
    assert 'a person decides: `align approve plan.yaml --why "..."` or `align reject plan.yaml --why "..."`' in last
    [row] = [row for row in json.loads(judged.align("plan", "plan.yaml", "--json")) if row["state"] != "built"]
    assert (row["stage"], row["state"]) == ("release", "waits")
    assert row["why"] == ["waits for a person: `align approve` or `align reject`"]
    shown = judged.align("gates", "plan.yaml")
    for part in ("finished_rate", "What changed since the champion", "Rows", "Made of", "sft policy/"):
        assert part in shown
    assert "data:image" not in shown
    # asked again, the store alone says the same, with the settings it was asked under
    elsewhere = replace(judged, server="http://127.0.0.1:9/api")
    assert elsewhere.align("run", "plan.yaml", code=3).splitlines()[-1] == last
    other = judged.align("run", "plan.yaml", "--set", "gates.0.at_least=0.25", code=3)
    assert '`align approve plan.yaml --set gates.0.at_least=0.25 --why "..."`' in other


def test_a_decision_in_a_terminal_is_kept_said_again_and_released_from_the_store(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.store.glob("*/*/manifest.json")}
    assert "--why: a decision is kept with its reason" in copy.align("approve", "plan.yaml", "--why", " ", code=2)
    assert "rejected by bo on " in copy.align("reject", "plan.yaml", "--why", "never stops", "--by", "bo")
    again = copy.align("run", "plan.yaml", code=3)
    assert again.splitlines()[-1].startswith("GateError: smoke: not released, rejected by bo on ")
    assert again.splitlines()[-1].endswith("UTC: never stops")
    assert "rejected already, nothing is changed" in copy.align("reject", "plan.yaml", "--why", "never", "--by", "cy", code=2)
    assert json.loads(copy.align("releases", "--json")) == {}
    printed = copy.align("approve", "plan.yaml", "--why", "fine [for] *us*", "--by", "ana")
    assert "`align run plan.yaml` releases it from the store" in printed
    assert {stage for stage, how in ended(copy.align("run", "plan.yaml")).items() if how == "built"} == {"release"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    approval = release_of(copy)["approval"]
    assert (approval["by"], approval["why"], approval["how"], approval["run"]) == ("ana", "fine [for] *us*", "command", None)
    assert (copy.store / ".decisions" / "evidence" / f"{approval['evidence']}.md").is_file()
    decisions = json.loads(copy.align("gates", "plan.yaml", "--json"))["decisions"]
    assert [(one["action"], one["by"]) for one in decisions] == [("reject", "bo"), ("approve", "ana")]
    assert "approved by ana on " in copy.align("gates", "plan.yaml")
    assert "up to date" in copy.align("run", "plan.yaml")
    copy.align("gc", "--keep-days", "0")
    assert "approved by ana" in copy.align("gates", "plan.yaml")


def test_what_was_not_judged_passed_or_failed_is_not_for_a_person(copy):
    passed = ["--set", "gates.0.at_least=0"]
    assert "released" in copy.align("run", "plan.yaml", *passed)
    said = copy.align("approve", "plan.yaml", *passed, "--why", "fine", code=2)
    assert "the verdict is pass: nobody is asked, `align run` releases it" in said
    failed = ["--set", "gates.0.at_least=0.9"]
    assert "the verdict is fail" in copy.align("run", "plan.yaml", *failed, code=3)
    assert "no person can allow what a gate forbids" in copy.align("approve", "plan.yaml", *failed, "--why", "fine", code=2)
    (copy.folder / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    assert "not judged as data and settings are now" in copy.align("approve", "plan.yaml", "--why", "fine", code=2)


def test_a_plan_that_always_asks_waits_on_a_pass(copy):
    always = ["--set", "gates.0.at_least=0", "--set", "release.approval=always"]
    assert "the verdict is pass, and this plan asks a person to approve it" in copy.align("run", "plan.yaml", *always, code=3)
    copy.align("approve", "plan.yaml", *always, "--why", "looked at it", "--by", "ana")
    assert "released" in copy.align("run", "plan.yaml", *always)
    assert release_of(copy)["approval"]["why"] == "looked at it"


def test_a_run_that_is_not_there_is_one_sentence(judged):
    said = judged.align("approve", "no-such-run", "--why", "fine", code=2)
    assert "no-such-run: no plan file, and http://127.0.0.1:" in said
    assert "knows no one run of this name or id" in said
    assert "no run of" in judged.align("gates", "no-such-run", code=2)
    alone = replace(judged, server=None)
    assert "no Prefect server runs whose run it could be" in alone.align("approve", "no-such-run", "--why", "fine", code=4)


# -- runs that wait ---------------------------------------------------------------------------------------------


def test_a_run_is_approved_by_command_and_of_two_at_once_one_counts(copy, client):
    with worker(copy):
        run = suspended(client, copy)
        [record] = [
            json.loads(path.read_text()) for path in (copy.store / ".runs").glob("*.json") if str(run.id) in path.read_text()
        ]
        assert (record["status"], set(record["steps"])) == ("suspended", set(copy.states()) - {"release"})
        assert list((copy.store / ".runs").glob("*.lock")) == []  # nobody takes it for dead
        assert "Release smoke to champion?" in copy.align("gates", run.name)
        other = start(client, copy, "plan.yaml")  # the worker's one place is free, and the same question is not asked twice
        assert f"{run.name} asks for the decision already" in finished(client, other).message
        before = {path: path.stat().st_mtime_ns for path in copy.store.glob("*/*/manifest.json")}
        clicks = [copy.start("approve", run.name, "--why", "fine", "--by", "ana"),
                  copy.start("reject", str(run.id), "--why", "not fine", "--by", "bo")]  # fmt: skip
        said = [click.communicate(timeout=200) for click in clicks]
        codes = [click.returncode for click in clicks]
        assert sorted(codes) == [0, 2], said
        late = said[codes.index(2)][1]
        assert "somebody has just decided" in late or "has ended" in late
        end = finished(client, run)
    [found] = json.loads(copy.align("gates", "plan.yaml", "--json"))["decisions"]
    approved = codes[0] == 0
    assert (found["action"], found["by"]) == (("approve", "ana") if approved else ("reject", "bo"))
    assert end.name == ("Completed" if approved else "Failed"), end.message
    assert {path: path.stat().st_mtime_ns for path in before} == before
    states = [name for _, name in task_states(client, run)]
    assert states.count("Completed") == (1 if approved else 0)  # the release alone
    assert "waits for nothing" in copy.align("approve", run.name, "--why", "again", code=2)


def test_an_approval_of_what_has_changed_since_is_refused_and_nothing_is_built(copy, client):
    with worker(copy):
        run = suspended(client, copy)
        prompts = copy.folder / "prompts.jsonl"
        kept = prompts.read_text()
        prompts.write_text(kept.replace("Canada", "France"))
        said = copy.align("approve", run.name, "--why", "fine", "--by", "ana", code=3)
        assert f"{run.name}: what it asks about has changed since" in said
        before = sorted(copy.store.glob("*/*/manifest.json"))
        client.resume_flow_run(run.id, run_input={"decision": "approve", "reviewer": "ana", "reason": "clicked in the UI"})
        end = finished(client, run)
    assert end.name == "Failed"
    assert "it was approved by ana on " in end.message
    assert "what that was about has changed since" in end.message
    assert sorted(copy.store.glob("*/*/manifest.json")) == before
    assert json.loads(copy.align("releases", "--json")) == {}
    prompts.write_text(kept)  # what was approved is there again, and nobody is asked again
    assert "released" in copy.align("run", "plan.yaml")
    assert release_of(copy)["approval"]["how"] == "form"


def test_silence_rejects_and_an_approval_comes_too_late_for_that_run(copy, client):
    with worker(copy):
        run = suspended(client, copy, "plan.yaml", "--set", "release.review_days=0.0004")
        end = finished(client, run, 90)
        assert end.name == "Failed"
        assert "never resumed" in end.message
        assert "its time to decide ended on " in copy.align("approve", run.name, "--why", "fine", code=2)
        again = start(client, copy, "plan.yaml")
        assert "not released, rejected by nobody on " in finished(client, again).message
    assert "rejected by nobody" in copy.align("run", "plan.yaml", code=3)
    copy.align("approve", "plan.yaml", "--why", "I was on holiday", "--by", "ana")
    assert "released" in copy.align("run", "plan.yaml")


def test_an_empty_answer_is_not_taken_by_the_server(copy, client):
    with worker(copy):
        run = suspended(client, copy)
    for answer in ({}, {"decision": "approve", "reviewer": "ana"}, {"decision": "approve", "reviewer": "ana", "reason": "   "}):
        assert client.resume_flow_run(run.id, run_input=answer).status.value == "REJECT"
    assert state(client, run).name == "Suspended"
    copy.align("reject", "plan.yaml", "--why", "enough", "--by", "bo")  # by the plan: the run hears it too
    with worker(copy):
        assert "rejected by bo on " in finished(client, run).message
    assert not (copy.store / "release").exists()
