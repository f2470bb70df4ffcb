"""kill -9 of the flow and of its child at random points, and two runs at once: each artifact is trained once, and whole."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from smoke import ended, write_smoke

pytestmark = pytest.mark.slow


def children(store: Path) -> list[int]:
    """Process ids of training children that work in `store`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"tasks.training" in (process / "cmdline").read_bytes() and str(store) in str((process / "cwd").readlink()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_killed_at_random_points_the_next_run_completes_and_nothing_finished_is_repeated(tmp_path, prefect_server):
    smoke = write_smoke(tmp_path / "smoke", prefect_server)
    draw = random.Random(os.getpid())
    done: dict[str, int] = {}
    for attempt in range(6):
        process = smoke.start("run", "plan.yaml")
        time.sleep(draw.uniform(4, 14))
        if attempt % 2 and (running := children(smoke.store)):
            os.kill(draw.choice(running), signal.SIGKILL)  # the child: the flow goes on by itself
            time.sleep(draw.uniform(0, 4))
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 10
        while children(smoke.store) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert children(smoke.store) == [], "a child outlived its flow"
        now = {str(path): path.stat().st_mtime_ns for path in smoke.store.glob("*/*/manifest.json")}
        assert done.items() <= now.items(), "a finished stage was built again"
        done = now
    assert "champion = release" in smoke.align("run", "plan.yaml")
    now = {str(path): path.stat().st_mtime_ns for path in smoke.store.glob("*/*/manifest.json")}
    assert done.items() <= now.items()
    assert not list((smoke.store / ".aside").glob("*")), "something torn had been put in place"
    for path in now:
        shown = json.loads(smoke.align("show", Path(path).parent.name, "--json"))
        assert shown["damage"] is None


def test_two_runs_at_once_train_each_artifact_once(tmp_path, prefect_server):
    smoke = write_smoke(tmp_path / "smoke", prefect_server)
    both = [smoke.start("run", "plan.yaml") for _ in range(2)]
    printed = [process.communicate(timeout=540)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    one, two = map(ended, printed)
    for stage in ("sft", "reward", "dpo", "merge", "scores-base"):
        assert sorted([one[stage], two[stage]]) == ["built", "cached"], stage


def test_without_a_server_two_runs_at_once_complete_and_json_is_all_that_is_printed(tmp_path):
    smoke = write_smoke(tmp_path / "smoke", None)
    small = ("--set", "reward=null", "--set", "policy=null")
    both = [smoke.start("run", "plan.yaml", "--json", *small) for _ in range(2)]
    printed = [json.loads(process.communicate(timeout=540)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0]["release"] == printed[1]["release"] == printed[0]["points_to"]
    assert printed[0]["verdict"]["verdict"] == "pass"
