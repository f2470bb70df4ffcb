"""The flow `align`: the pipeline as a Prefect flow run, one task run per stage, then the channel moves."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.pipeline import pipeline
from flows.plan import Plan, as_json
from tasks.channels import promote
from tasks.core import stop
from tasks.core.errors import AlignError
from tasks.core.files import locked, write_json
from tasks.core.launch import PARENT, end_with
from tasks.core.spec import Json
from tasks.core.store import Store
from tasks.stage import Event, Submit

_WORKERS = 64
"""threads that wait for inputs or a child; more than any pipeline has stages, so that none waits for a thread"""
LISTENERS: list[Callable[[Event], None]] = []
"""who hears what the stages of this process do; the command line adds itself"""


def _name() -> str:
    parameters: dict[str, Any] = flow_run.parameters  # pyright: ignore[reportAttributeAccessIssue]
    return f"{parameters['plan'].name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


@flow(name="align", flow_run_name=_name, task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS))  # pyright: ignore
def align(plan: Plan, rerun: str | None = None) -> str:
    """Turn a base model and data into a released, aligned model.

    Args:
        plan: everything that is asked for
        rerun: a stage to build again whatever the store holds; everything else comes from the store where it can
    """
    workshop = plan.workshop()
    build = Submit(workshop, plan.name, frozenset([rerun] if rerun else ()), _tell)
    record = _Record(workshop.store, plan)
    stop.allow()
    if worker := os.environ.get(PARENT):
        end_with(int(worker))
    with locked(record.lock):  # the kernel lets go of it, however this process dies
        record.open()
        try:
            pipeline(plan, build)
            for future in build.futures.values():
                future.wait()  # one branch failed: the others still finish, and their artifacts stay
            _raise_first(build)
            release = build.futures["release"].result()
            promote(workshop.store, plan.release.channel, workshop.store.at(release))
        except BaseException as error:
            stop.stop()
            record.close(build, error)
            raise
        record.close(build, None)
    return release


def _tell(event: Event) -> None:
    for listener in LISTENERS:
        listener(event)


def _raise_first(build: Submit) -> None:
    """Raise what the first failed stage raised; stages that only lacked its result say nothing new."""
    for name, future in build.futures.items():
        if future.state.is_failed() or future.state.is_crashed() or future.state.is_cancelled():
            future.result(raise_on_failure=True)
            raise AlignError(f"{name}: ended as {future.state.name}: {future.state.message}")


class _Record:
    """The store's own record of a run: `.runs/<run>.json`, for `align show` and for what garbage collection keeps."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.run = f"{plan.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        self._path = store.folder("runs") / f"{self.run}.json"
        self.lock = self._path.with_suffix(".lock")
        self._fields: dict[str, Json] = {
            "run": self.run,
            "plan": as_json(plan),
            "flow_run": str(flow_run.id),  # pyright: ignore[reportAttributeAccessIssue]
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
        }

    def open(self) -> None:
        """Note that the run began."""
        write_json(self._path, self._fields)

    def close(self, build: Submit, error: BaseException | None) -> None:
        """Note which artifacts the stages ended with, and how the run did."""
        steps: dict[str, Json] = {}
        for name, future in build.futures.items():
            done = future.state.is_completed()
            steps[name] = {"state": future.state.name, "artifact": future.result() if done else None}
        self._fields |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "completed" if error is None else type(error).__name__ if isinstance(error, Exception) else "interrupted",
            "error": (str(error) or type(error).__name__) if error else None,
            "steps": steps,
        }
        write_json(self._path, json.loads(json.dumps(self._fields)))
        if error is None or isinstance(error, Exception):
            self.lock.unlink(missing_ok=True)  # else `flows.reap` looks after it
