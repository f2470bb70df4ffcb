"""Runs whose process is gone say so: killed for good, a flow cannot report its own end and would look alive for ever.

A run holds `.runs/<run>.lock` as long as it lives, and the kernel lets go of it, however the process dies.
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
        if fields["status"] == "running":
            if not _crash(UUID(fields["flow_run"]), url):
                continue  # the server has no time now, or wants a password: the next call tries again
            now = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(record, fields | {"status": "lost", "finished": now, "error": _LOST})
            lost.append(record.stem)
        lock.unlink(missing_ok=True)
    return lost


def _crash(run: UUID, url: str) -> bool:
    """End a flow run, and its task runs, where the server still takes them for alive; whether the server took it."""
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
            if flow.state is None or not flow.state.is_final():
                client.set_flow_run_state(run, Crashed(message=_LOST), force=True)
        except ObjectNotFound:
            return True  # recorded by a server with another database
        except HTTPError:
            return False
    return True
