"""The report of a run: written beside its record when it ends, shown by the server of `align ui`, and again by `align report`.

Never the reason why a run fails: what cannot be written is said in its log.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.core.errors import SpecError
from tasks.core.files import write_atomic
from tasks.core.store import Store

ROUTE = "/reports"
"""where our server shows the reports of its store: `/reports/<run>.html`"""


def place(store: Store, run: str) -> Path:
    """Where the report of `run` lies."""
    return store.folder("runs") / f"{run}.html"


def write(store: Store, record: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write the report of the run of `record` to `out`, or beside the record; equal facts give equal bytes."""
    from tasks.report import report

    path = out or place(store, record["run"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, report(store, record))
    return path


def publish(store: Store, record: Mapping[str, Any]) -> None:
    """Put the verdict and the key numbers on a page of the run that is going on, with the way to the report.

    An artifact of Prefect: `<plan>-report`.  Its link is relative, and there where the server is ours and shows this store.
    """
    from prefect.artifacts import create_markdown_artifact

    from tasks.report import brief
    from tasks.stage import artifact_key

    said, page = brief(store, record)
    way = [f"[**Open the report**]({ROUTE}/{record['run']}.html)"] if _served(record["run"]) else []
    where = f"It lies in the store, `.runs/{record['run']}.html`; `align report {record['run']} --open` shows it."
    create_markdown_artifact(
        "\n\n".join([page, *way, where]), key=artifact_key(record["plan"]["name"], "report"), description=said
    )


def _served(run: str) -> bool:
    import urllib.error
    import urllib.request

    from prefect.settings import PREFECT_API_URL

    url = str(PREFECT_API_URL.value() or "").rstrip("/").removesuffix("/api")
    try:
        with urllib.request.urlopen(f"{url}{ROUTE}/{run}.html", timeout=5) as answer:
            return answer.status == 200 and answer.headers.get_content_type() == "text/html" and b"alignflow" in answer.read()
    except (urllib.error.URLError, OSError, ValueError):
        return False


def show(store: Store, target: str, overrides: Sequence[str], out: Path | None, *, open_: bool) -> None:
    """`align report`: write the report of a run, or of a plan's last run, and say where it is."""
    import webbrowser

    from flows.console import out as console
    from tasks.present import sized

    path = write(store, find(store, target, overrides), out)
    console().print(f"{path}  ({sized(path.stat().st_size)})", markup=False, soft_wrap=True)
    if open_ and not webbrowser.open(path.absolute().as_uri()):
        console().print("no browser here; copy the file to where one is: it needs nothing else")


def find(store: Store, target: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The record of the run called `target`, here or on the server, or of the last run of the plan in the file `target`."""
    records = [(file.stat().st_mtime_ns, file, json.loads(file.read_text(encoding="utf-8"))) for file in _records(store)]
    ordered = [record for _, _, record in sorted(records, key=lambda known: (known[2]["started"], known[0]))]
    if target.endswith((".yaml", ".yml")):
        from flows.loading import read

        name = read(Path(target), overrides)["name"]
        found = [record for record in ordered if record["plan"]["name"] == name]
        if not found:
            raise SpecError(f"{target}: no run of {name} is recorded in {store.root}; `align run {target} --record` makes one")
        return found[-1]
    found = [record for record in ordered if target in (record["run"], record.get("called"), record.get("flow_run"))]
    if not found:
        last = f"; the last one is {ordered[-1]['run']}" if ordered else ""
        raise SpecError(f"{target}: no plan file, and no run recorded in {store.root} is called so{last}")
    return found[-1]


def _records(store: Store) -> list[Path]:
    return sorted(store.folder("runs").glob("*.json"))
