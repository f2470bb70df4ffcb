"""The stages of lm-eval's tasks: a task with its documents, kept in the store, and what a policy scores on them.

Only the first may use the network, and no model is there when it does.  What it keeps is all that the second needs, so a data
set that moves on the hub changes nothing that was measured.
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import MachineError
from tasks.core.launch import run_child
from tasks.core.spec import Spec
from tasks.generate import alone

TASK_FILE = "task.json"
"""in an artifact of a task: what it is, see `tasks.training.harness_data`"""
DOCUMENTS = "documents"
"""folder in it: a table for each split that the task uses, as the data set has it"""
LOCAL = "tasks"
"""folder in it: the folder that the task is in, for one of the user's own"""
INSTALL = "pip install -c constraints.txt -e '.[lm-eval]'"


class HarnessTaskSpec(Spec):
    """A task of lm-eval and its documents."""

    task: str
    """its name"""
    harness: str
    """release of lm-eval"""


class HarnessSpec(Spec):
    """How a policy is asked the documents of a task."""

    harness: str
    """release of lm-eval"""
    limit: PositiveInt | None = None
    """so many documents, drawn by the digest of each, so that every model gets the same; null: all"""
    few_shot: NonNegativeInt | None = None
    """solved examples before each document; null: as the task says"""
    chat_template: bool = False
    """ask under the model's chat template, examples as turns, in place of plain text"""


@cache
def installed() -> str | None:
    """The release of lm-eval that is there; None without one."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


def check_release(wanted: str) -> None:
    """Raise MachineError, which says what to do, unless lm-eval is there in the release `wanted`."""
    if (found := installed()) != wanted:
        there = f"lm-eval {found} is there" if found else "it is not there"
        raise MachineError(f"this is asked of lm-eval {wanted}, and {there}; {INSTALL}")


def keep_task(spec: HarnessTaskSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write the task and its documents.  Inputs: tasks, a folder, for a task of the user's own.

    Raises SpecError for a task that is not there, or that cannot be measured with here, and MachineError where its data set is
    neither at hand nor to be had.
    """
    check_release(spec.harness)
    return run_child("harness_data", spec, inputs, out, run, network=True)


def score_task(spec: HarnessSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `suite.json`.  Inputs: policy, task."""
    check_release(spec.harness)
    return alone("harness", spec, inputs, out, run)


HARNESS_TASK = Stage("lm-eval-task", 1, "prompts", keep_task, heavy=True)
"""inputs: none; tasks (a folder) for a task of the user's own"""
HARNESS = Stage("lm-eval", 1, "scores", score_task, heavy=True)
"""inputs: policy, task"""
