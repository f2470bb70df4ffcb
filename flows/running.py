"""What every flow here shares: the store's own record of a run, its lock, who listens, how it stops, and with what it fails."""

import json
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import Pause
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.plan_parts import Asked, as_json
from tasks.core import stop
from tasks.core.build import Workshop
from tasks.core.errors import AlignError
from tasks.core.files import locked, write_json
from tasks.core.launch import PARENT, end_with, resident
from tasks.core.spec import Json
from tasks.core.store import Store
from tasks.stage import Event, Submit

LISTENERS: list[Callable[[Event], None]] = []
"""who hears what the stages of this process do; the command line adds itself"""


def tell(event: Event) -> None:
    """Pass `event` on to every listener."""
    for listener in LISTENERS:
        listener(event)


def named(flow: str) -> Callable[[], str]:
    """How runs of `flow` are called on the server: the plan's name, the flow's unless it is the main one, the time.

    Prefect asks again when a run goes on after it was suspended or retried: it keeps the name that people know.
    """

    def name() -> str:
        parameters: dict[str, Any] = flow_run.parameters  # pyright: ignore[reportAttributeAccessIssue]
        now, before = _stamped(parameters["plan"].name, flow), str(flow_run.name)  # pyright: ignore[reportAttributeAccessIssue]
        return before if re.sub(r"\d{8}-\d{6}$", "", before) == re.sub(r"\d{8}-\d{6}$", "", now) else now

    return name


def _stamped(plan: str, flow: str) -> str:
    return "-".join([plan, *([flow] if flow != "align" else []), f"{datetime.now(UTC):%Y%m%d-%H%M%S}"])


@contextmanager
def recorded(flow: str, plan: Asked, build: Submit) -> Generator["Callable[[], None]"]:
    """Record a run of `flow` while the body runs; whatever ends the body ends every child and wait of this process too.

    Gives what a body calls before it suspends the run: from then on Prefect answers no question about what was built.  A run that
    was not interrupted leaves its report beside its record.
    """
    record = _Record(flow, build.workshop.store, plan)
    stop.allow()
    if worker := os.environ.get(PARENT):
        end_with(int(worker))
    with locked(record.lock):  # the kernel lets go of it, however this process dies
        record.open()
        LISTENERS.append(record.hear)
        try:
            yield lambda: record.suspend(build)
        except BaseException as error:
            stop.stop()
            record.close(build, error)
            raise
        else:
            record.close(build, None)
        finally:
            LISTENERS.remove(record.hear)


def failure(name: str, future: PrefectFuture[Any]) -> Exception | None:
    """What the stage `name` failed with; None where it did not, and where it only lacked the result of one that did.

    Raises what is no failure of the stage: an interrupt.
    """
    future.wait()
    if not (future.state.is_failed() or future.state.is_crashed() or future.state.is_cancelled()):
        return None
    try:
        future.result(raise_on_failure=True)
    except Exception as error:  # noqa: BLE001  whoever asked decides
        return error
    return AlignError(f"{name}: ended as {future.state.name}: {future.state.message}")


def without_paths(said: str, workshop: Workshop) -> str:
    """`said` with this machine's places named, so that it can be part of an artifact."""
    for name, place in (("store", workshop.store.root), ("models", workshop.models)):
        said = said.replace(str(place), name)
    return said


class _Record:
    """The store's own record of a run: `.runs/<run>.json`, for `align show` and for what garbage collection keeps."""

    def __init__(self, flow: str, store: Store, plan: Asked) -> None:
        self.run = f"{_stamped(plan.name, flow)}-{os.getpid()}"
        self._store = store
        self._path = store.folder("runs") / f"{self.run}.json"
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._busy = _busy()
        self.lock = self._path.with_suffix(".lock")
        self._fields: dict[str, Json] = {
            "run": self.run,
            "flow": flow,
            "plan": as_json(plan),
            "flow_run": str(flow_run.id),  # pyright: ignore[reportAttributeAccessIssue]
            "called": str(flow_run.name),  # pyright: ignore[reportAttributeAccessIssue]
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
        }

    def open(self) -> None:
        """Note that the run began."""
        write_json(self._path, self._fields)

    def hear(self, event: Event) -> None:
        """Measure how long the stages take in this run, failed attempts too, and waiting for a place on the machine not."""
        now = time.monotonic()
        if event.what == "started":
            self._began[event.stage] = now
        elif event.what in ("built", "failed") and event.stage in self._began:
            self._took[event.stage] = self._took.get(event.stage, 0.0) + now - self._began.pop(event.stage)

    def settle(self, build: Submit) -> None:
        """Remember which artifacts the stages ended with, in the order in which they were asked for, and what they took."""
        steps: dict[str, Json] = {}
        for number, (name, future) in enumerate(build.futures.items(), start=1):
            done = future.state.is_completed()
            step: dict[str, Json] = {"number": number, "state": future.state.name, "artifact": future.result() if done else None}
            steps[name] = step | ({"seconds": round(self._took[name], 3)} if name in self._took else {})
        self._fields["steps"] = steps
        self._fields["process"] = {"cpu_seconds": round(_busy() - self._busy, 3), "peak_bytes": resident("VmHWM")}

    def suspend(self, build: Submit) -> None:
        """Note all of it before Prefect stops answering, and publish the report while it still takes one."""
        self.settle(build)
        self._fields["status"] = "suspended"
        self._report()

    def close(self, build: Submit, error: BaseException | None) -> None:
        """Note which artifacts the stages ended with, and how the run did."""
        if not isinstance(error, Pause):
            self.settle(build)
        self._fields |= {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": _status(error),
            "error": None if error is None or isinstance(error, Pause) else str(error) or type(error).__name__,
        }
        write_json(self._path, json.loads(json.dumps(self._fields)))
        if error is None or isinstance(error, Exception | Pause):
            self._report(publish=not isinstance(error, Pause))
            self.lock.unlink(missing_ok=True)  # else `flows.reap` looks after it

    def _report(self, *, publish: bool = True) -> None:
        """Write the report, and tell Prefect and every listener; a report that fails is no reason for a run to fail."""
        from flows import report

        record = json.loads(json.dumps(self._fields))
        try:
            path = report.write(self._store, record)
            tell(Event("", "report", str(path)))
            if publish:
                report.publish(self._store, record)
        except Exception as error:  # noqa: BLE001  a file that is gone, a server that is away
            get_run_logger().warning(
                f"no report of this run ({type(error).__name__}: {error}); `align report {self.run}` tries again"
            )


def _busy() -> float:
    """CPU seconds of this process, without its children."""
    times = os.times()
    return times.user + times.system


def _status(error: BaseException | None) -> str:
    """How a run ended that ended with `error`; one that waits for a person is no failure and will be run again."""
    if error is None:
        return "completed"
    if isinstance(error, Pause):
        return "suspended"
    return type(error).__name__ if isinstance(error, Exception) else "interrupted"
