"""Run training jobs in children of one process that has imported everything, some to be killed -9 at a chosen place.

Called with a JSON list of [work folder, place or null, how often the place is passed before the kill]; prints the children's
exit codes as JSON, a signal as its negative number.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimiser of each child would import

import tasks.training.ppo
import tasks.training.rollout
from tasks.training.__main__ import main

PLACES = {
    "rollout": (tasks.training.rollout, "sampled"),  # between two tokens
    "keeping": (tasks.training.rollout, "sync"),  # the rollout is written, and not in its place yet
    "update": (tasks.training.ppo, "value_loss"),  # the policy has a gradient, the value model none
    "saving": (torch, "save"),  # a checkpoint has weights, and no optimiser or no scheduler yet
}


def kill_at(place: str, passed: int) -> None:
    """Have this process die the next time after `passed` times that `place` is called."""
    owner, name = PLACES[place]
    real, left = getattr(owner, name), [passed]

    def deadly(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)

    setattr(owner, name, deadly)


def born(work: Path, place: str | None, passed: int) -> int:
    """Run the job of `work` in a child; its exit code, or the negative number of the signal that ended it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(work)
    if place:
        kill_at(place, passed)
    code = main(Path("job.json"))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    print(json.dumps([born(Path(work), place, passed) for work, place, passed in json.loads(sys.argv[1])]))  # noqa: T201
