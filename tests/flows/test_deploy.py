"""A schedule that fires, a worker that serves it; a run that is cancelled or loses its worker or itself leaves nobody behind."""

import json
import signal

import pytest
from serving_runs import deployed, until, worker
from smoke import PLAN, write_smoke
from test_interrupted import children

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LONG = PLAN.replace("name: smoke", "name: long").replace("max_steps: 4", "max_steps: 100000")


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


def runs(client, deployment):
    """Flow runs of a deployment, newest first."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    return client.read_flow_runs(deployment_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_DESC)


def task_states(client, run):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {task.name: task.state.name for task in tasks}


def record(smoke, run):
    """The store's record of a flow run."""
    records = [json.loads(path.read_text()) for path in (smoke.store / ".runs").glob("*.json")]
    return next(record for record in records if record["flow_run"] == str(run.id))


def test_a_schedule_fires_and_the_worker_runs_it_from_the_store(smoke, client):
    plan = smoke.folder / "cron.yaml"
    plan.write_text(PLAN + 'schedule: {cron: "0 3 * * *"}\n')
    assert "0 3 * * * (UTC)" in smoke.align("deploy", "cron.yaml")
    plan.write_text(PLAN + 'schedule: {cron: "* * * * *"}\n')
    printed = smoke.align("deploy", "cron.yaml")  # again: it is changed, not doubled
    assert "align/smoke deployed" in printed
    assert "* * * * * (UTC)" in printed
    deployment = deployed(client, "smoke")
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["* * * * *"]
    try:
        with worker(smoke) as process:
            run = until(lambda: next((run for run in runs(client, deployment) if run.state.is_final()), None), 150)
            process.send_signal(signal.SIGINT)
            process.wait(60)
    finally:
        client.delete_deployment(deployment.id)
    assert run.state.name == "Completed", (smoke.folder / "worker.log").read_text()
    assert run.auto_scheduled
    assert task_states(client, run) == dict.fromkeys(smoke.states(), "Cached")
    kept = record(smoke, run)
    assert kept["status"] == "completed"
    assert {name: step["artifact"].rpartition("/")[2] for name, step in kept["steps"].items()} == smoke.keys()
    assert list((smoke.store / ".runs").glob("*.lock")) == []


def test_a_plan_without_a_schedule_waits_for_a_person_and_a_bad_one_is_refused(smoke, client):
    assert "no schedule: start it in the UI" in smoke.align("deploy", "plan.yaml")
    deployment = deployed(client, "smoke")
    assert deployment.schedules == []
    client.delete_deployment(deployment.id)
    bad = smoke.align("deploy", "plan.yaml", "--set", "schedule={cron: sometimes}", code=2)
    assert "schedule: 'sometimes' in 'UTC' is no schedule" in bad
    bad = smoke.align("deploy", "plan.yaml", "--set", "schedule={cron: 0 2 * * *, timezone: Mars/Olympus}", code=2)
    assert "'Mars/Olympus' is no schedule" in bad


def test_without_a_server_deploy_and_worker_say_so(tmp_path):
    alone = write_smoke(tmp_path / "alone", None)
    for command in (("deploy", "plan.yaml"), ("worker",)):
        assert "no Prefect server: start one with `align ui`" in alone.align(*command, code=4)


def test_a_cancelled_run_and_a_stopped_or_killed_worker_leave_no_child_and_no_running_state(tmp_path, prefect_server, client):
    smoke = write_smoke(tmp_path / "long", prefect_server)
    (smoke.folder / "plan.yaml").write_text(LONG)
    smoke.align("deploy", "plan.yaml")
    deployment = deployed(client, "long")

    def training():
        """A new flow run, as far as its first training child."""
        run = client.create_flow_run_from_deployment(deployment.id)
        until(lambda: children(smoke.store), 120)
        assert client.read_flow_run(run.id).state.name == "Running"
        return run

    from prefect.states import Cancelling

    try:
        with worker(smoke) as process:
            run = training()
            client.set_flow_run_state(run.id, Cancelling())
            until(lambda: not children(smoke.store), 60)
            until(lambda: client.read_flow_run(run.id).state.is_final(), 60)
            assert client.read_flow_run(run.id).state.name == "Cancelled"
            assert record(smoke, run)["status"] == "interrupted"
            assert until(lambda: "Running" not in task_states(client, run).values(), 60)

        with worker(smoke) as process:
            run = training()
            process.terminate()
            assert process.wait(60) == 0
            assert children(smoke.store) == []
            assert client.read_flow_run(run.id).state.name == "Crashed"
            assert not {"Running", "Pending"} & set(task_states(client, run).values())
            assert record(smoke, run)["status"] == "lost"

        with worker(smoke) as process:
            run = training()
            process.kill()
            until(lambda: not children(smoke.store), 60)
            until(lambda: client.read_flow_run(run.id).state.is_final(), 60)
            assert client.read_flow_run(run.id).state.name == "Crashed"
            assert until(lambda: record(smoke, run)["status"] == "interrupted", 60)
            smoke.align("deploy", "plan.yaml")  # what the dying flow could not tell the server, the next command does
            assert not {"Running", "Pending"} & set(task_states(client, run).values())
            assert list((smoke.store / ".runs").glob("*.lock")) == []
    finally:
        client.delete_deployment(deployment.id)


def test_a_run_killed_for_good_is_marked_lost_by_the_next_command(tmp_path, prefect_server, client):
    smoke = write_smoke(tmp_path / "killed", prefect_server)
    (smoke.folder / "plan.yaml").write_text(LONG)
    process = smoke.start("run", "plan.yaml")
    until(lambda: children(smoke.store), 120)
    process.kill()
    process.communicate()
    [path] = (smoke.store / ".runs").glob("*.json")
    run = client.read_flow_run(json.loads(path.read_text())["flow_run"])
    assert run.state.name == "Running"  # nobody was left to say otherwise
    smoke.align("deploy", "plan.yaml")
    client.delete_deployment(deployed(client, "long").id)
    run = client.read_flow_run(run.id)
    assert run.state.name == "Crashed"
    assert "the process of this run was killed" in run.state.message
    assert not {"Running", "Pending"} & set(task_states(client, run).values())
    assert record(smoke, run)["status"] == "lost"
    assert list((smoke.store / ".runs").glob("*.lock")) == []


def test_a_run_that_lives_is_left_alone(tmp_path):
    from flows.reap import reap
    from tasks.core.files import locked

    living = tmp_path / ".runs" / "living.json"
    living.parent.mkdir()
    living.write_text('{"status": "running", "flow_run": "00000000-0000-0000-0000-000000000000"}')
    with locked(living.with_suffix(".lock")):
        assert reap(tmp_path, "http://127.0.0.1:9/api") == []
    assert json.loads(living.read_text())["status"] == "running"
    assert reap(tmp_path, "http://127.0.0.1:9/api") == []  # nobody answers there: the next call tries again
    assert living.with_suffix(".lock").exists()
