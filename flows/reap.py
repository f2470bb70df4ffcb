"""Runs whose process is gone say so: killed for good, a flow cannot report its own end and would look alive for ever.

A run holds `.runs/<run>.lock` as long as it lives, and the kernel lets go of it, however the process dies.  A run that closed
its record removes the file, unless it was interrupted: then its last messages to the server may be lost.
"""

from datetime import UTC, datetime
from json import loads
from pathlib import Path
from uuid import UUID

from tasks.core.files import held, write_json

_LOST = "the process of this run was killed, or its machine went down; what was finished is kept: run the plan again"


def reap(store: Path, url: str) -> list[str]:
    """Mark runs that died without a word as lost, in the store and on the server at `url`; their names."""
    found = [(lock, lock.with_suffix(".json")) for lock in sorted((store / ".runs").glob("*.lock"))]
    lost: list[str] = []
    for lock, record in found:
        if not record.exists() or held(lock):
            continue
        fields = loads(record.read_text(encoding="utf-8"))
        lively = fields["status"] == "running"
        if not _settle(UUID(fields["flow_run"]), url, flow_too=lively):
            continue  # the server has no time now, or wants a password: the next call tries again
        if lively:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(record, fields | {"status": "lost", "finished": now, "error": _LOST})
            lost.append(record.stem)
        lock.unlink(missing_ok=True)
    return lost


def _settle(run: UUID, url: str, *, flow_too: bool) -> bool:
    """End the task runs, and the flow run, that the server still takes for alive; whether the server took it."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Crashed

    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        try:
            flow = client.read_flow_run(run)
            for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
                if task.state is None or not task.state.is_final():
                    client.set_task_run_state(task.id, Crashed(message=_LOST), force=True)
            if flow_too and (flow.state is None or not flow.state.is_final()):
                client.set_flow_run_state(run, Crashed(message=_LOST), force=True)
        except ObjectNotFound:
            return True  # recorded by a server with another database
        except HTTPError:
            return False
    return True
