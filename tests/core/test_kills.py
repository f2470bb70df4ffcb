"""kill -9 at random points of a run: the next run completes, nothing torn is used, finished stages are not repeated."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.core.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STAGES = 4

DRIVER = f"""
import os, sys, time
from pathlib import Path
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.core.store import Store

class Nothing(Spec):
    number: int

def work(spec, inputs, out, run):
    with open(sys.argv[2], "a") as log:
        log.write(f"{{spec.number}}\\n")
    for i in range(20):
        (out / f"part-{{i}}").write_bytes(os.urandom(0) + bytes([spec.number]) * 50_000)
        time.sleep(0.002)
    return {{"number": spec.number}}

shop = Workshop(Store(Path(sys.argv[1])), Path(sys.argv[1]) / "models")
last = {{}}
print("ready", flush=True)
for number in range({STAGES}):
    artifact, built = shop.build(Stage("work", 1, "texts", work), Nothing(number=number), last)
    last = {{"last": artifact}}
"""


def start(tmp_path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "store"), str(tmp_path / "log")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()  # imports are done: kills from here on land in the run itself
    return process


def finished(store: Store) -> dict[str, str]:
    return {artifact.key: artifact.digest for artifact in store.all()}


def test_killed_forty_times_it_completes_and_repeats_nothing_that_was_finished(tmp_path):
    draw = random.Random(os.getpid())
    store = Store(tmp_path / "store")
    log = tmp_path / "log"
    log.touch()
    known: dict[str, str] = {}
    for _ in range(40):
        process = start(tmp_path)
        time.sleep(draw.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = finished(store)
        assert known.items() <= now.items(), "a finished artifact was lost or changed"
        known = now
        for artifact in store.all():
            assert artifact.damage(deep=True) is None
    process = start(tmp_path)
    assert process.wait(60) == 0
    assert len(finished(store)) == STAGES
    before = log.read_text()
    assert start(tmp_path).wait(60) == 0
    assert log.read_text() == before, "a finished stage ran again"


def test_two_processes_at_once_build_each_artifact_once(tmp_path):
    both = [start(tmp_path) for _ in range(3)]
    assert [process.wait(60) for process in both] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [str(i) for i in range(STAGES)]


def test_a_half_deleted_artifact_is_rebuilt_and_what_lies_below_is_not(tmp_path):
    assert start(tmp_path).wait(60) == 0
    store = Store(tmp_path / "store")
    first = next(artifact for artifact in store.all() if artifact.metrics == {"number": 0})
    (first.path / "part-3").unlink()
    (tmp_path / "log").unlink()
    assert start(tmp_path).wait(60) == 0
    assert (tmp_path / "log").read_text().split() == ["0"]
    reasons = [json.loads(file.read_text())["why"] for file in (store.root / ".aside").glob("*.json")]
    assert reasons == ["part-3 is missing"]
