"""The server a person sees: loopback only, gone when its parent is, one sentence when it cannot start, SQLite or PostgreSQL."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SECRET = "admin:correct-horse-battery"


def environment(home, **more):
    """Ours without what points to another server."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ALIGN_"))}
    return rest | {"PREFECT_HOME": str(home / "prefect"), "ALIGN_STORE": str(home / "store"), "PYTHONPATH": str(ROOT)} | more


def until(what, seconds):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


@contextmanager
def ui(home, port, *arguments, **more):
    """`align ui`, once it says where it is; its process and its log."""
    log = home / "ui.log"
    home.mkdir(exist_ok=True)
    (home / "click.py").write_text("raise RuntimeError('a file of the working directory was imported')")
    command = [sys.executable, "-P", "-m", "flows.cli", "ui", "--port", str(port), *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment(home, **more), stdout=file, stderr=subprocess.STDOUT, cwd=home)
    try:
        until(lambda: "Prefect UI at" in log.read_text() or process.poll() is not None, 150)
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        process.terminate()
        process.wait(60)


def server_of(home):
    """Process id of the server that `align ui` started."""
    return json.loads((home / "store" / ".server.json").read_text())["pid"]


def listens(pid):
    """Addresses on which a process accepts connections, as /proc/net/tcp and tcp6 have them: hex address:port."""
    sockets = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def failing(home, port, *arguments, **more):
    """What `align ui` says when it cannot start."""
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port), *arguments]
    run = subprocess.run(command, env=environment(home, **more), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 4, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_it_listens_on_loopback_alone_keeps_its_password_to_itself_and_ends_when_asked(tmp_path, free_port):
    port = free_port()
    with ui(tmp_path, port, PREFECT_SERVER_API_AUTH_STRING=SECRET, PREFECT_API_AUTH_STRING=SECRET) as (process, log):
        server = server_of(tmp_path)
        assert listens(server) == {f"0100007F:{port:04X}"}
        assert listens(process.pid) == set()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/admin/version")
        assert "already; open" in failing(tmp_path, port)
        assert str(tmp_path / "store" / f".server-{port}.log") in log.read_text()
    assert process.returncode == 0
    assert not alive(server)
    assert not (tmp_path / "store" / ".server.json").exists()
    held = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []


def test_a_killed_parent_takes_it_along_and_ctrl_c_ends_it(tmp_path, free_port):
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a test run that a script started with & ignores it, and so would `align`
    port = free_port()
    with ui(tmp_path, port) as (process, _):
        server = server_of(tmp_path)
        process.kill()
        until(lambda: not alive(server), 60)
    with ui(tmp_path, port) as (process, _):
        server = server_of(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not alive(server)


def test_a_port_that_another_program_has_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failing(tmp_path, port)
    assert said == f"MachineError: 127.0.0.1:{port}: address already in use; take another --port\n"


def test_a_database_that_is_not_there_is_one_sentence_with_the_log_and_without_the_password(tmp_path, free_port):
    url = f"postgresql+asyncpg://team:hunter2hunter2@127.0.0.1:{free_port()}/align"
    port = free_port()
    said = failing(tmp_path, port, ALIGN_DATABASE=url)
    assert said.startswith("MachineError: the Prefect server did not start: ")
    assert said.count("\n") == 1
    log = tmp_path / "store" / f".server-{port}.log"
    assert f"(see {log})" in said
    assert "hunter2hunter2" not in said + log.read_text()


@pytest.fixture
def postgres(free_port):
    """Address of a database in a PostgreSQL cluster of this test's own; stopped by its process at the end."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here (/usr/lib/postgresql/*/bin): apt-get install postgresql")
    binaries = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="align-pg-"))  # not tmp_path: root alone may enter its parents
    user = {"user": "nobody"} if os.getuid() == 0 else {}  # the server refuses to be root
    if user:
        shutil.chown(folder, "nobody")
    data, port = folder / "data", free_port()
    make = [binaries / "initdb", "-D", data, "-U", "align", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
    serve = [
        binaries / "postgres",
        "-D",
        data,
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={folder}",
        "-F",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log, **user)
    try:
        ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        until(lambda: subprocess.run(ready, check=False).returncode == 0, 60)
        assert {address.partition(":")[0] for address in listens(process.pid)} == {"0100007F"}
        yield f"postgresql+asyncpg://align@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # postgres: end now, in good order
        process.wait(60)
        shutil.rmtree(folder)


def test_postgresql_by_one_setting_records_runs_and_a_restart_keeps_them(tmp_path, free_port, postgres):
    from smoke import write_smoke

    def runs(port):
        ask = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/flow_runs/filter", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(ask) as answer:
            return [(run["name"], run["state_name"]) for run in json.load(answer)]

    port = free_port()
    smoke = write_smoke(tmp_path / "smoke", f"http://127.0.0.1:{port}/api")
    (smoke.folder / "prompts.jsonl").write_text("")  # the run fails early: what is tested here is where it is recorded
    with ui(tmp_path, port, ALIGN_DATABASE=postgres.replace("+asyncpg", "")):
        printed = smoke.align("run", "plan.yaml", code=2)
        assert "recorded at" in printed
        [(name, state)] = runs(port)
        assert name.startswith("smoke-")
        assert state == "Failed"
    with ui(tmp_path, port, "--database", postgres):
        assert runs(port) == [(name, state)]
    assert not list((tmp_path / "prefect").glob("*.db")), "SQLite was used as well"
