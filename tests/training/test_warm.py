"""Children that start warm: the same bytes as cold ones, ours to kill, gone with us, and cold where it cannot be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from tasks.core import launch, warm
from tasks.core.contract import Execution, Run
from tasks.core.errors import Killed
from tasks.core.files import tree
from tasks.core.launch import run_child
from tasks.train import SftSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def spec(steps):
    fields = {"method": tiny.METHOD["lora"], "max_steps": steps, "global_batch": 8, "learning_rate": 1e-3}
    return SftSpec.model_validate(fields)


def payload(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in tree(folder)}


@pytest.fixture
def lesson(shop, tmp_path):
    """Start SFT in a child of its own folder; gives its output folder and the process id, parent and command line it had."""

    def start(name: str, steps: int = 2, at_step=lambda pid: None) -> tuple[Path, dict]:
        work, out = tmp_path / name, tmp_path / f"{name}-out"
        work.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        seen: dict = {}

        def look(progress):
            pid = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and works_in(p, work))
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            seen.update(pid=pid, parent=int(status["PPid"]), forked=warm.FORKED.encode() in command, group=os.getpgid(pid))
            at_step(pid)

        run = Run(work, shop.models, Execution(device="cpu", threads=1), progress=look)
        run_child("sft", spec(steps), shop.inputs("sft", None), out, run)
        return out, seen

    return start


def works_in(process: Path, work: Path) -> bool:
    try:
        return (process / "cwd").readlink() == work
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_fork_is_a_child_of_this_process_in_a_group_of_its_own_and_leaves_the_bytes_of_a_cold_one(lesson, monkeypatch):
    warm_out, seen = lesson("warm")
    assert seen == {"pid": seen["pid"], "parent": os.getpid(), "forked": True, "group": seen["pid"]}
    monkeypatch.setattr(launch, "fork", lambda work, environment: None)
    cold_out, cold = lesson("cold")
    assert not cold["forked"]
    assert payload(warm_out) == payload(cold_out)


def test_a_killed_fork_is_seen_as_killed_and_a_killed_origin_is_replaced_while_its_forks_go_on(lesson):
    with pytest.raises(Killed, match="exit -9"):
        lesson("killed", steps=50, at_step=lambda pid: os.kill(pid, signal.SIGKILL))
    [origin] = warm._origins
    out, _ = lesson("goes-on", at_step=lambda pid: os.kill(origin._process.pid, signal.SIGKILL))
    assert (out / "policy.json").exists()
    _, cold = lesson("between")
    assert not cold["forked"]
    _, again = lesson("after")
    assert again["forked"]
    assert warm._origins != [origin]


def test_where_nothing_can_be_forked_children_are_started_cold(lesson, monkeypatch):
    monkeypatch.setattr(warm, "_origins", [])
    monkeypatch.setattr(warm, "_alone", lambda environment: {**environment, "PYTHONPATH": "/nowhere"})
    monkeypatch.setattr(warm, "ROOT", Path("/"))
    out, seen = lesson("first")
    assert not seen["forked"]
    assert (out / "policy.json").exists()


def test_with_a_killed_parent_go_its_forks_and_who_was_forked(shop, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    inputs = {name: str(path) for name, path in shop.inputs("sft", None).items()}
    script = f"""
import json, sys
from pathlib import Path
from tasks.core import warm
from tasks.core.contract import Execution, Run
from tasks.core.launch import run_child
from tasks.train import SftSpec
spec = SftSpec.model_validate({spec(100_000).model_dump(mode="json")!r})
inputs = {{name: Path(path) for name, path in {inputs!r}.items()}}
run = Run(Path({str(work)!r}), Path({str(shop.models)!r}), Execution(device="cpu", threads=1),
          progress=lambda progress: print(warm._origins[0]._process.pid, flush=True))
run_child("sft", spec, inputs, Path({str(tmp_path / "out")!r}), run)
"""
    (tmp_path / "out").mkdir()
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        origin = int(parent.stdout.readline())
        child = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and works_in(p, work))
        parent.kill()
        parent.wait()
    assert gone(child)
    assert gone(origin)
