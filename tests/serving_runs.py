"""A worker as a process, and what the server knows of the runs it serves."""

import subprocess
import sys
import time
from contextlib import contextmanager

from smoke import ROOT


def until(what, seconds, poll=0.5):
    """The first true value of `what()`, asked again until then."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(poll)
    return found


@contextmanager
def worker(smoke):
    """`align worker` as a process; ended politely.  What it logged is shown where the test fails."""
    command = [sys.executable, "-m", "flows.cli", "worker"]
    path = smoke.folder / "worker.log"
    with path.open("a") as log:
        process = subprocess.Popen(
            command, cwd=smoke.folder, env=smoke.environment | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
    try:
        yield process
    except BaseException as error:
        error.add_note("".join(path.read_text().splitlines(keepends=True)[-100:]))
        raise
    finally:
        process.terminate()
        process.wait(60)


def task_states(client, run):
    """Task run names and states, in the order in which they began: a resumed run has two of each."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    return [
        (task.name, task.state.name)
        for task in client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.EXPECTED_START_TIME_ASC)
    ]


def deployed(client, name):
    """The one deployment of this name: the server may serve other tests' plans too."""
    [found] = [deployment for deployment in client.read_deployments() if deployment.name == name]
    return found


def start(client, smoke, plan, *overrides):
    """Deploy a plan file and create a run of it."""
    name = smoke.align("deploy", plan, *overrides).partition("align/")[2].split()[0]
    return client.create_flow_run_from_deployment(deployed(client, name).id)


def state(client, run):
    """The run's state as it is now."""
    return client.read_flow_run(run.id).state
