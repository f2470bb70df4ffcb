"""Schedules and workers: a plan becomes a Prefect deployment, a worker on this machine serves it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.console import out
from flows.plan import as_json, load
from flows.server import prepare
from tasks.core.errors import MachineError
from tasks.core.provenance import ROOT

POOL = "align"
"""the process work pool that `align worker` serves"""
_NO_SERVER = "no Prefect server: start one with `align ui`, or set PREFECT_API_URL"


def register(path: Path, overrides: Sequence[str]) -> None:
    """Create or update the deployment of a plan, with its schedule."""
    plan = load(path, overrides)
    server = prepare(plan.store.root)
    if server is None:
        raise MachineError(_NO_SERVER)
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments.runner import EntrypointType
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.schedules import Cron

    from flows.align import align

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            pass
    schedule = Cron(plan.schedule.cron, timezone=plan.schedule.timezone) if plan.schedule else None
    deployment = align.to_deployment(
        name=plan.name,
        parameters={"plan": as_json(plan)},
        schedule=schedule,
        work_pool_name=POOL,
        description=f"alignflow plan {plan.name}",
        tags=["alignflow"],
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"working_dir": str(ROOT)},
    )
    deployment.apply()
    when = f"{plan.schedule.cron} ({plan.schedule.timezone})" if plan.schedule else "no schedule: start it in the UI"
    out().print(f"align/{plan.name} deployed to {server.removesuffix('/api')}: {when}.  Serve it with `align worker`.")


def work(store: Path) -> None:
    """Run a worker of the pool until interrupted."""
    server = prepare(store)
    if server is None:
        raise MachineError(_NO_SERVER)
    command = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        POOL,
        "--type",
        "process",
        "--name",
        f"align-{os.getpid()}",
    ]
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "3")
    out().print(f"serving pool {POOL} of {server.removesuffix('/api')} (Ctrl-C stops it)")
    try:
        subprocess.run(command, check=False, cwd=ROOT)
    except KeyboardInterrupt:
        pass
