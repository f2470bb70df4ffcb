"""Child processes: streamed, classified, and never left behind."""

import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tasks.core import launch, stop
from tasks.core.contract import Execution, Progress, Run, Usage
from tasks.core.errors import AlignError, DataError, Killed, MachineError, OutOfMemory, TimedOut
from tasks.core.spec import Spec


class Nothing(Spec):
    pass


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Run a script in place of the training module; return what `run_child` returned, its log and its progress."""
    log: list[str] = []
    seen: list[Progress] = []
    used: list[Usage] = []

    def start(script: str, *, network: bool = False, **execution: object):
        path = tmp_path / "script.py"
        path.write_text("import json, os, sys, time\nfrom pathlib import Path\n" + textwrap.dedent(script))
        monkeypatch.setattr(launch, "_command", lambda processes: [sys.executable, str(path)])
        run = Run(tmp_path, tmp_path, Execution(**execution), log.append, seen.append, used=used.append)
        return launch.run_child("job", Nothing(), {}, tmp_path / "out", run, network=network)

    start.log, start.seen, start.used, start.work = log, seen, used, tmp_path
    return start


def test_returns_metrics_and_streams_log_and_progress(child):
    metrics = child(
        r"""
        print("loading")
        print("\x1e" + json.dumps({"step": 1, "total": 2, "values": {"loss": 0.5}}))
        print("bar 1%\rbar 2%")
        sys.stderr.write("warned\n")
        sys.stdout.write("no newline at the end")
        Path("metrics.json").write_text('{"loss": 0.25}')
        """
    )
    assert metrics == {"loss": 0.25}
    assert sorted(child.log) == ["bar 2%", "loading", "no newline at the end", "warned"]
    assert child.seen == [Progress(1, 2, {"loss": 0.5})]


OFFLINE = """
    Path("metrics.json").write_text(json.dumps({"offline": os.environ["HF_HUB_OFFLINE"]}))
    """


@pytest.mark.parametrize(("said", "heard"), [(None, "0"), ("1", "1"), ("0", "0")])
def test_a_child_is_offline_unless_its_stage_is_for_the_network_and_the_user_allows_it(child, monkeypatch, said, heard):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if said is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", said)
    assert child(OFFLINE) == {"offline": "1"}
    assert child(OFFLINE, network=True) == {"offline": heard}


@pytest.mark.parametrize(
    ("device", "found"), [("nvidia0", True), ("kfd", True), ("dxg", True), ("nvidiactl", False), ("null", False)]
)
def test_a_gpu_is_known_by_its_device_and_its_driver_never_meets_a_fork(child, monkeypatch, tmp_path, device, found):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / device).touch()
    seen = launch._gpus(devices)
    assert seen == found
    forked = []
    monkeypatch.setattr(launch, "_gpus", lambda: seen)
    monkeypatch.setattr(launch, "fork", lambda work, environment: forked.append(work))
    monkeypatch.setattr(launch, "_JOB", [sys.executable, str(child.work / "script.py")])
    for asked in ("auto", "cpu"):  # one that is told to stay off the GPU may be forked all the same
        child(OFFLINE, device=asked)
    assert len(forked) == (1 if found else 2)


def test_a_child_that_may_use_the_network_is_no_fork_of_a_process_that_may_not(child, monkeypatch):
    forked = []
    monkeypatch.setattr(launch, "fork", lambda work, environment: forked.append(environment["HF_HUB_OFFLINE"]))
    monkeypatch.setattr(launch, "_JOB", [sys.executable, str(child.work / "script.py")])
    child(OFFLINE, network=True, device="cpu")
    assert forked == []
    child(OFFLINE, device="cpu")
    assert forked == ["1"]


REPORTS = """
    from tasks.core.launch import report_usage
    held = bytearray(os.urandom(1 << 20)) * 200
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    report_usage(Path(), RANK)
    Path("metrics.json").write_text("{}")
"""


def test_what_a_child_took_is_measured_and_an_old_measurement_is_not_taken_for_it(child, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(launch.__file__).parents[2]))
    (child.work / "usage-7.json").write_text('{"cpu_seconds": 1e6, "peak_bytes": 1, "gpu_bytes": null}')
    child(REPORTS.replace("RANK", "0"))
    [used] = child.used
    assert 0.3 <= used.cpu_seconds < 20
    assert 200 * 2**20 < used.peak_bytes < 2**30
    assert used.gpu_bytes is None
    child("Path('metrics.json').write_text('{}')")  # a child that measured nothing
    assert child.used == [used]


def test_processes_side_by_side_add_up_and_children_one_after_the_other_do_not(child):
    write = "Path('usage-{}.json').write_text(json.dumps({{'cpu_seconds': 2.0, 'peak_bytes': {}, 'gpu_bytes': {}}}));"
    child(write.format(0, 10, 5) + write.format(1, 20, 6) + "Path('metrics.json').write_text('{}')")
    assert child.used == [Usage(4.0, 30, 11)]
    assert Usage(4.0, 30, 11) + Usage(1.0, 40, None) == Usage(5.0, 40, 11)
    assert Usage(4.0, 30, None) + Usage(1.0, 20, None) == Usage(5.0, 30, None)


def test_secrets_are_blanked_out_of_the_log(child, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    child("print('token', os.environ['HF_TOKEN']); Path('metrics.json').write_text('{}')")
    assert child.log == ["token <HF_TOKEN>"]


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (
            "Path('error.json').write_text(json.dumps({'type': 'DataError', 'message': 'no rows'})); sys.exit(2)",
            DataError,
            "no rows",
        ),
        ("os.kill(os.getpid(), 9)", Killed, "killed"),
        ("os.kill(os.getpid(), 15)", Killed, "killed"),
        ("os.kill(os.getpid(), 11)", AlignError, "exit -11"),
        ("print('last words'); sys.exit(1)", AlignError, "last words"),
        ("sys.exit(0)", AlignError, "left no result"),
    ],
)
def test_the_way_it_ended_decides_the_error(child, script, error, says):
    with pytest.raises(error, match=says) as raised:
        child(script)
    assert type(raised.value) is error


def test_out_of_memory_halves_the_micro_batch_until_one_row_is_left(child):
    script = """
        size = json.loads(Path("job.json").read_text())["execution"]["micro_batch"] or 4
        Path("micro_batch").write_text(str(size))
        print("used", size)
        Path("error.json").write_text(json.dumps({"type": "OutOfMemory", "message": "out of memory"}))
        sys.exit(4)
        """
    for left in (2, 1):
        with pytest.raises(OutOfMemory, match=f"micro_batch {left} instead"):
            child(script)
    with pytest.raises(MachineError, match="at one row at a time") as raised:
        child(script)
    assert not isinstance(raised.value, OutOfMemory)
    assert child.log == ["used 4", "used 2", "used 1"]


def test_an_old_result_is_never_taken_for_a_new_one(child):
    child("Path('metrics.json').write_text('{\"old\": 1}')")
    with pytest.raises(AlignError, match="left no result"):
        child("sys.exit(0)")


def gone(pid: int, seconds: float = 8) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


FAMILY = """
    import subprocess
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("pids").write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(600)
"""


def test_a_timeout_kills_the_whole_tree(child):
    with pytest.raises(TimedOut, match="timeout_minutes"):
        child(FAMILY, timeout_minutes=2 / 60)
    assert all(gone(int(pid)) for pid in (child.work / "pids").read_text().split())


def test_a_stop_from_another_thread_kills_the_whole_tree(child):
    def end() -> None:
        while not (child.work / "pids").exists():
            time.sleep(0.05)
        stop.stop()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(stop.Stopped):
            child(FAMILY)
    finally:
        stop.allow()
        thread.join()
    assert all(gone(int(pid)) for pid in (child.work / "pids").read_text().split())


def test_a_killed_parent_takes_its_child_with_it(tmp_path):
    (tmp_path / "child.py").write_text(
        "import os, time\nopen('pid.draft', 'w').write(str(os.getpid()))\nos.rename('pid.draft', 'pid')\ntime.sleep(600)\n"
    )
    script = f"""
import sys
from pathlib import Path
from tasks.core import launch, stop
from tasks.core.contract import Run
from tasks.core.spec import Spec
class Nothing(Spec): pass
launch._command = lambda processes: [sys.executable, {str(tmp_path / "child.py")!r}]
launch.run_child("job", Nothing(), {{}}, Path("out"), Run(Path({str(tmp_path)!r}), Path()))
"""
    parent = os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", script)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not pid.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(int(pid.read_text()))


def test_a_plan_that_asks_for_a_smaller_micro_batch_is_heard_after_a_killed_attempt(child):
    (child.work / "micro_batch").write_text("8")
    script = "print(json.loads(Path('job.json').read_text())['execution']['micro_batch']); Path('metrics.json').write_text('{}')"
    child(script, micro_batch=2)
    child(script)
    assert child.log == ["2", "8"]
