"""Fixtures that several folders share."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from endpoint import serve  # noqa: F401  a fixture

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are busy with other files already
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: each core takes a file at a time, and the last ones should be short."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def free_port():
    """A TCP port on loopback that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory, free_port):
    """Address of a Prefect server of this test session, started by `align ui` and stopped by its process."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port), "--store", str(home / "store")]
    log = home / "ui.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 150
    while "Prefect UI at" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/api"
    process.terminate()
    process.wait(60)
