"""The bridge to Prefect, on a real server: states, retries, parallel branches, artifacts, and a schedule that fires."""

import threading
import time
import uuid
from pathlib import Path

import pytest

from tasks.core.build import Workshop
from tasks.core.contract import Execution, Inputs, Metrics, Progress, Run, Stage
from tasks.core.errors import DataError, Killed
from tasks.core.spec import Spec
from tasks.core.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Word(Spec):
    text: str = "a"


def write(spec: Word, inputs: Inputs, out: Path, run: Run) -> Metrics:
    run.log("writing")
    run.progress(Progress(1, 2, {"loss": 0.5}))
    run.progress(Progress(2, 2, {"loss": 0.25}))
    (out / "word.txt").write_text(spec.text + "".join((path / "word.txt").read_text() for path in inputs.values()))
    return {"characters": len(spec.text)}


WRITE = Stage("write", 1, "texts", write)


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models", Execution(parallel=2))


def run_flow(shop, pipeline, name="demo", fresh=frozenset()):
    """Run `pipeline(build)` as a flow; return the flow's state and its name on the server."""
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    from tasks.stage import Submit

    called = f"test-{uuid.uuid4().hex[:8]}"

    @flow(name="test", flow_run_name=called, task_runner=ThreadPoolTaskRunner(max_workers=16))
    def body() -> None:
        build = Submit(shop, name, fresh)
        pipeline(build)
        for future in build.futures.values():
            future.wait()
        for future in build.futures.values():
            future.result()

    return body(return_state=True), called


def task_states(client, called):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[called])))
    return {run.name: run.state.name for run in runs}


def two(build):
    a = build(WRITE, Word(text="a"), {}, name="first")
    build(WRITE, Word(text="b"), {"a": a}, name="second")


def test_task_runs_are_named_by_stage_and_a_second_run_is_cached(client, shop):
    state, called = run_flow(shop, two)
    assert state.is_completed()
    assert task_states(client, called) == {"first": "Completed", "second": "Completed"}
    state, called = run_flow(shop, two)
    assert task_states(client, called) == {"first": "Cached", "second": "Cached"}
    state, called = run_flow(shop, two, fresh=frozenset(["second"]))
    assert task_states(client, called) == {"first": "Cached", "second": "Completed"}


def test_each_stage_leaves_a_markdown_artifact_and_its_progress(client, shop):
    from prefect.client.schemas.sorting import ArtifactSort

    run_flow(shop, two, name="Shown Plan")
    found = {artifact.key: artifact for artifact in client.read_artifacts(sort=ArtifactSort.CREATED_DESC)}
    page = found["shown-plan-second"]
    assert page.type == "markdown"
    assert "| characters | 1 |" in page.data
    assert found["shown-plan-second-progress"].type == "progress"


def test_an_artifact_deleted_between_runs_is_rebuilt_not_called_cached(client, shop):
    import shutil

    run_flow(shop, two)
    for folder in (shop.store.root / "texts").iterdir():
        if "b" in (folder / "word.txt").read_text():
            shutil.rmtree(folder)
    _, called = run_flow(shop, two)
    assert task_states(client, called) == {"first": "Cached", "second": "Completed"}


def test_a_killed_child_is_retried_and_bad_data_is_not(client, shop, monkeypatch):
    from tasks import stage as bridge

    monkeypatch.setattr(bridge, "RETRY_DELAY_SECONDS", [0, 0])
    attempts: dict[str, int] = {"killed": 0, "data": 0}

    def killed_once(spec: Word, inputs: Inputs, out: Path, run: Run) -> Metrics:
        attempts["killed"] += 1
        if attempts["killed"] == 1:
            raise Killed("lost")
        return write(spec, {}, out, run)

    def bad(spec: Word, inputs: Inputs, out: Path, run: Run) -> Metrics:
        attempts["data"] += 1
        raise DataError("row 7 has no answer; add one")

    def pipeline(build):
        build(Stage("killed", 1, "texts", killed_once, heavy=True), Word(), {})
        bad_one = build(Stage("bad", 1, "texts", bad, heavy=True), Word(), {})
        build(WRITE, Word(), {"bad": bad_one}, name="below")

    state, called = run_flow(shop, pipeline)
    states = task_states(client, called)
    assert attempts == {"killed": 2, "data": 1}
    assert states["killed"] == "Completed"
    assert states["bad"] == "Failed"
    assert [state for name, state in states.items() if name.startswith("below")] == ["NotReady"]
    assert state.is_failed()
    assert "row 7 has no answer" in state.message


def test_branches_run_at_once_as_far_as_slots_allow(client, shop):
    running, most = [], []
    lock = threading.Lock()

    def busy(spec: Word, inputs: Inputs, out: Path, run: Run) -> Metrics:
        with lock:
            running.append(spec.text)
            most.append(len(running))
        time.sleep(1.0)
        with lock:
            running.remove(spec.text)
        return write(spec, {}, out, run)

    stage = Stage("busy", 1, "texts", busy, heavy=True)

    def pipeline(build):
        for text in "abcd":
            build(stage, Word(text=text), {}, name=f"busy-{text}")

    state, _ = run_flow(shop, pipeline)
    assert state.is_completed()
    assert max(most) == 2
    assert len(most) == 4


def test_a_cron_deployment_gets_scheduled_runs(client):
    """A plain install of prefect 3.8.8 starts no server (fastapi) or schedules nothing (sqlalchemy 2.1): the pins matter."""
    from prefect import flow
    from prefect.schedules import Cron

    @flow(name="ticking")
    def ticking() -> None: ...

    deployment = ticking.to_deployment(name=f"tick-{uuid.uuid4().hex[:6]}", schedule=Cron("* * * * *"), entrypoint_type=None)
    deployment.entrypoint = "tests/flows/test_prefect.py:ticking"
    made = deployment.apply()
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    deadline = time.monotonic() + 90
    states: list[str] = []
    while not states and time.monotonic() < deadline:
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[made])))
        states = [run.state.type.value for run in runs]
        time.sleep(1)
    client.delete_deployment(made)
    assert "SCHEDULED" in states
