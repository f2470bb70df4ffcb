"""Schedules and workers: a plan becomes a Prefect deployment, a worker on this machine serves it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flows.console import out
from flows.plan_parts import SchedulePlan, as_json
from flows.reap import reap
from flows.server import prepare, shown
from flows.task_pipeline import load
from tasks.core.errors import MachineError, SpecError
from tasks.core.launch import PARENT, tied
from tasks.core.provenance import ROOT

if TYPE_CHECKING:
    from prefect.schedules import Schedule

POOL = "align"
"""the process work pool that `align worker` serves"""
_NO_SERVER = "no Prefect server: start one with `align ui`, or set PREFECT_API_URL"
_WORKER = {
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    "PREFECT_RUNNER_POLL_FREQUENCY": "3",  # a cancelled run ends within seconds even if the server's push does not come through
}
_OWN_ID = f"import os,sys;os.environ['{PARENT}']=str(os.getpid());os.execv(sys.argv[1],sys.argv[1:])"
"""becomes the worker, which its flow runs then know by its process id"""


def register(path: Path, overrides: Sequence[str]) -> None:
    """Create or update the deployment of a plan, with its schedule.  Raises SpecError for a schedule that says nothing."""
    plan = load(path, overrides)
    server = _server(plan.store.root)
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments.runner import DeploymentApplyError
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.types.entrypoint import EntrypointType

    from flows.align import align

    deployment = align.to_deployment(  # pyright: ignore[reportFunctionMemberAccess]
        name=plan.name,
        parameters={"plan": as_json(plan)},
        schedule=_schedule(path, plan.schedule) if plan.schedule else None,
        work_pool_name=POOL,
        description=f"Runs `{path.absolute()}` as it was when `align deploy` read it; what is built already is not built again.",
        tags=["alignflow"],
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"working_dir": str(ROOT)},
    )
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    try:
        deployment.apply()
    except DeploymentApplyError as error:
        raise MachineError(f"{server}: refused the deployment: {str(error)[:200]}; is the server of another version?") from error
    when = f"{plan.schedule.cron} ({plan.schedule.timezone})" if plan.schedule else "no schedule: start it in the UI"
    out().print(f"align/{plan.name} deployed to {shown(server).removesuffix('/api')}: {when}.  Serve it with `align worker`.")


def work(store: Path) -> None:
    """Run a worker of the pool, one plan at a time, until interrupted.

    A worker that ends takes its flow run and that one's children with it, so that none trains for nobody.
    """
    server = _server(store)
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
    command += ["--name", f"align-{os.uname().nodename}-{os.getpid()}"]
    out().print(f"serving pool {POOL} of {shown(server).removesuffix('/api')} (Ctrl-C stops it)")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a script's & had interrupts ignored: Prefect's worker ends by one
        signal.signal(number, signal.default_int_handler)
    environment = {**_WORKER, **os.environ}
    process = subprocess.Popen(tied([sys.executable, "-c", _OWN_ID, *command]), cwd=ROOT, env=environment, start_new_session=True)
    try:
        if process.wait():
            raise MachineError(f"Prefect's worker ended by itself, exit {process.returncode}; what it printed says why")
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
    finally:
        reap(store, server)  # Prefect's worker kills its flow run for good


def _server(store: Path) -> str:
    server = prepare(store)
    if server is None:
        raise MachineError(_NO_SERVER)
    return server


def _schedule(path: Path, asked: SchedulePlan) -> "Schedule":
    from prefect.schedules import Cron

    try:
        ZoneInfo(asked.timezone)
        return Cron(asked.cron, timezone=asked.timezone)
    except (ValueError, ZoneInfoNotFoundError) as error:
        said = " ".join(str(error).split())
        raise SpecError(
            f"{path}: schedule: {asked.cron!r} in {asked.timezone!r} is no schedule ({said[:120]}); try '0 2 * * *' in UTC"
        ) from error
