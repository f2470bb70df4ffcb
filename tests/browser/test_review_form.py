"""A person reviews two runs in the real Prefect UI: one is approved and released, the other rejected; neither trains again."""

import json
from contextlib import suppress

import pytest
from serving_runs import start, state, task_states, until, worker
from smoke import PLAN, write_smoke

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]

OPEN = """
gates:
  - {metric: finished_rate, at_least: 0.2, note: answers must end}
"""
"""the tiny model ends none of its 8 answers by itself: [0, 0.37], which holds the bound"""
PARTS = (
    "policy: {max_steps: 4, global_batch: 4, max_length: 1024}\n",
    "reward: {max_steps: 4, global_batch: 4, max_length: 1024}\n",
)


def sft_alone(name, bound):
    """A plan that trains one policy, and whose only gate stays open."""
    head, _, tail = PLAN.replace("name: smoke", f"name: {name}").partition("\ngates:\n")
    for part in PARTS:
        head = head.replace(part, "")
    return head + OPEN.replace("0.2", str(bound)) + tail.partition("against: base}\n")[2]


def decide(page, server, run, decision, reviewer, reason):
    """Fill the form as a person does, after a try without a reason."""
    page.goto(f"{server.removesuffix('/api')}/runs/flow-run/{run.id}")
    page.get_by_role("button", name="Resume").click()
    form = page.locator(".p-modal")
    form.get_by_text("Release").first.wait_for()
    form.locator(".p-select-button__control").press("ArrowDown")
    page.get_by_role("option", name=decision).click()
    name, why = form.locator("textarea").all()
    name.fill(reviewer)
    form.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(1500)
    assert form.is_visible()  # the server does not take an answer without a reason
    why.fill(reason)
    text = form.inner_text()
    until(lambda: submitted(form), 120)
    return text


def submitted(form):
    """Click as often as a person would: the form takes no click while it waits for the reply to the one before."""
    from playwright.sync_api import TimeoutError as TooLate

    with suppress(TooLate):
        form.get_by_role("button", name="Submit").click(timeout=5_000)
        form.wait_for(state="hidden", timeout=10_000)
    return not form.is_visible()


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


def test_one_run_is_approved_and_one_rejected_in_the_ui_and_nothing_is_built_twice(tmp_path, prefect_server, client, browser):
    smoke = write_smoke(tmp_path / "review", prefect_server)
    for name, bound in (("first", 0.2), ("second", 0.1)):
        (smoke.folder / f"{name}.yaml").write_text(sft_alone(name, bound))
    with worker(smoke) as process:
        first = start(client, smoke, "first.yaml")
        until(lambda: state(client, first).name == "Suspended" or state(client, first).is_final(), 600)
        assert state(client, first).name == "Suspended", state(client, first).message
        second = start(client, smoke, "second.yaml")  # the worker has one place, and a run that waits does not hold it
        until(lambda: state(client, second).name == "Suspended", 200)
        built = {path: path.stat().st_mtime_ns for path in smoke.store.glob("*/*/manifest.json")}
        assert not list((smoke.store / "release").glob("*"))

        page = browser()
        shown = decide(page, prefect_server, first, "approve", "ana", "short answers are fine | here")
        assert "Release first to champion?" in shown
        assert "finished_rate" in shown
        assert "open: 0.000" in shown
        assert "There is none: this would be the first release in champion." in shown
        until(lambda: state(client, first).is_final(), 120)
        assert state(client, first).name == "Completed", state(client, first).message

        shown = decide(page, prefect_server, second, "reject", "bo", "it never stops talking")
        assert "need >= 0.1" in shown
        until(lambda: state(client, second).is_final(), 120)
        assert process.poll() is None

    ended = state(client, second)
    assert ended.name == "Failed"
    assert "second: not released, rejected by bo on " in ended.message
    assert ended.message.endswith("it never stops talking")

    [(channel, moves)] = json.loads(smoke.align("releases", "--json")).items()
    assert channel == "champion"
    [move] = moves
    folder = smoke.store / "release" / move["release"]
    approval = json.loads((folder / "release.json").read_text())["approval"]
    evidence = smoke.store / ".decisions" / "evidence" / f"{approval['evidence']}.md"
    assert (approval["action"], approval["by"], approval["how"]) == ("approve", "ana", "form")
    assert approval["why"] == "short answers are fine | here"
    assert approval["run"] == client.read_flow_run(first.id).name
    assert "Release first to champion?" in evidence.read_text()
    card = (folder / "README.md").read_text()
    assert "Approved by **ana** on " in card
    assert r"> short answers are fine \| here" in card
    assert approval["evidence"] in card

    stages = set(smoke.states_of("first.yaml"))
    states = task_states(client, first)
    assert sorted(states) == sorted(
        [*((name, "Completed") for name in stages), *((name, "Cached") for name in stages - {"release"})]
    )
    assert {path: path.stat().st_mtime_ns for path in built} == built
    assert len(list((smoke.store / "policy").glob("*"))) == 3  # base, sft, merge: for both plans

    # asked again, the store alone knows who decided what
    assert "up to date" in smoke.align("run", "first.yaml")
    assert "rejected by bo on " in smoke.align("run", "second.yaml", code=3)
    assert "it has ended (Completed) and waits for nothing" in smoke.align(
        "approve", client.read_flow_run(first.id).name, "--why", "once more", code=2
    )
