"""Prefect's server: found, or run on loopback for as long as it is needed.  Sets the environment before Prefect is imported."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from flows.reap import reap
from tasks.core.errors import MachineError
from tasks.core.files import locked, write_json
from tasks.core.launch import tied
from tasks.core.provenance import ROOT
from tasks.core.secrets import redact

_STARTING = Path(tempfile.gettempdir()) / f"alignflow-server-{os.getuid()}.lock"
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # nothing is pickled
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_SERVER = {
    "PREFECT_SERVER_UI_API_URL": "/api",  # relative, so that the pages work on any port and through a tunnel
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the newer pages ask another site for settings on load; /v2 still shows them
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",  # survives a restart
}

_REAP_SECONDS = 30.0
"""how often `align ui` looks for runs whose process is gone"""


def prepare(store: Path) -> str | None:
    """Point Prefect at the server that runs, and return its address; None if there is none.

    In this order: PREFECT_API_URL, the server `align ui` runs for this store.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if url := os.environ.get("PREFECT_API_URL"):
        if not healthy(url):
            raise MachineError(
                f"{shown(url)}: no Prefect server answers at PREFECT_API_URL; start it, or unset the variable to run without"
            )
    elif (url := running(store)) is None:
        return None
    os.environ["PREFECT_API_URL"] = url
    reap(store, url)
    return url


@contextmanager
def temporary(store: Path) -> Generator[None]:
    """A server of our own for one run, on a free port of loopback; `align ui` shows the run: the database is Prefect's usual one.

    Not Prefect's own ephemeral server: that one shares our process group, dies of the Ctrl-C meant for the run, and leaves the
    run waiting for it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _server(store, port, None) as (process, url):
        os.environ["PREFECT_API_URL"] = url
        reap(store, url)
        try:
            yield
        finally:
            _drain()
            del os.environ["PREFECT_API_URL"]
    assert process.poll() is not None


def running(store: Path) -> str | None:
    """Address of the server that `align ui` runs for this store, if it answers."""
    try:
        url = str(json.loads(_note(store).read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None
    return url if healthy(url) else None


def healthy(url: str) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, OSError, ValueError):
        return False


def _drain() -> None:
    """Send what Prefect still has queued before its server goes away."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


def serve(store: Path, port: int, database: str | None) -> None:
    """Run a server on loopback until interrupted, and say where it is.  `database`: a SQLAlchemy URL; default SQLite."""
    if healthy(f"http://127.0.0.1:{port}/api"):
        raise MachineError(
            f"127.0.0.1:{port}: a server answers there already; open http://127.0.0.1:{port} or take another --port"
        )
    _claim(port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended politely is an interrupt too
    try:
        with _server(store, port, database) as (process, url):
            write_json(_note(store), {"url": url, "pid": process.pid})
            where = f"store {store}; Ctrl-C stops it; log {_log(store, port)}"
            print(f"Prefect UI at http://127.0.0.1:{port}   ({where})", flush=True)  # noqa: T201
            while process.poll() is None:
                reap(store, url)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_REAP_SECONDS)
            raise MachineError(f"the Prefect server ended by itself, exit {process.returncode} (see {_log(store, port)})")
    except KeyboardInterrupt:
        pass
    finally:
        _note(store).unlink(missing_ok=True)


@contextmanager
def _server(store: Path, port: int, database: str | None) -> "Generator[tuple[subprocess.Popen[bytes], str]]":
    """A Prefect server that answers; stopped at the end, and by the kernel should this process be killed."""
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **_DEFAULTS,
        **_SERVER,
        **os.environ,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment.pop("PREFECT_API_URL", None)
    if database := database or os.environ.get("ALIGN_DATABASE"):
        scheme, slashes, rest = database.partition("://")
        driver = "postgresql+asyncpg" if scheme in ("postgres", "postgresql") else scheme
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = driver + slashes + rest
    store.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "flows.serving", str(store), str(port)]
    with ExitStack() as starting:
        starting.enter_context(locked(_STARTING))  # two servers at once would both write a new database
        file = starting.enter_context(_log(store, port).open("w"))
        process = subprocess.Popen(tied(command), env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait(process, url, _log(store, port))
        except BaseException:
            _end(process)
            raise
    try:
        yield process, url
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _claim(port: int) -> None:
    """Raise MachineError if another program has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended leaves the port in TIME_WAIT
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise MachineError(f"127.0.0.1:{port}: {(error.strerror or 'taken').lower()}; take another --port") from error


def shown(url: str) -> str:
    """`url` without the user and password it may hold."""
    scheme, slashes, rest = url.partition("://")
    return scheme + slashes + rest.rpartition("@")[2]


def _log(store: Path, port: int) -> Path:
    return store / f".server-{port}.log"


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not healthy(url):
        if process.poll() is not None:
            raise MachineError(f"the Prefect server did not start: {redact(_reason(log))} (see {log})")
        if time.monotonic() > deadline:
            raise MachineError(f"the Prefect server did not answer within {seconds:g} s (see {log})")
        time.sleep(0.3)


def _reason(log: Path) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or ["no output"])[-1]


def _note(store: Path) -> Path:
    return store / ".server.json"
