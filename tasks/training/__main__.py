"""The child: read job.json in this folder, run one job, leave metrics.json, or error.json when it failed.

A job is a module of this package with `run(spec, inputs, out, run) -> metrics`, the same shape as a stage function.
"""

import ctypes
import gc
import json
import logging
import os
import sys
import traceback
import warnings
from importlib import import_module
from inspect import signature
from pathlib import Path

from tasks.core.contract import Execution, Progress, Run
from tasks.core.errors import AlignError, OutOfMemory
from tasks.core.files import write_json
from tasks.core.launch import EVENT, report_usage
from tasks.core.secrets import redact
from tasks.core.warm import FORKED, until_forked

JOBS = (
    "pretrain", "sft", "reward", "dpo", "kto", "orpo", "grpo", "rloo", "ppo", "heads", "merge", "compose",
    "generate", "score", "rewards", "metrics", "suites", "choices", "predict", "profile",
    "harness", "harness_data",
)  # fmt: skip

HARMLESS = ("Unsupported layer type .*Norm", "The following (rank|alpha)_pattern keys did not match")
"""what PEFT warns of although it is meant: layer norms as targets, an unused rank or scale for fused experts"""


def main(path: Path) -> int:
    """Run the job that `path` describes; 0 when it left metrics."""
    if os.environ.get("LOCAL_RANK"):
        ctypes.CDLL(None).prctl(1, 9)  # one of several: die with the launcher
    quiet()
    job = json.loads(path.read_text())
    work = Path(job["work"])
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        if job["job"] not in JOBS:
            raise AlignError(f"{job['job']}: no such job; there are {', '.join(JOBS)}")  # noqa: TRY301
        function = import_module(f"tasks.training.{job['job']}").run
        spec = signature(function).parameters["spec"].annotation.model_validate(job["spec"])
        inputs = {name: Path(value) for name, value in job["inputs"].items()}
        run = Run(work, Path(job["models"]), Execution(**job["execution"]), log=_log, progress=_progress)
        metrics = function(spec, inputs, Path(job["out"]), run)
        report_usage(work, int(os.environ.get("RANK", "0")))
        if first:
            write_json(work / "metrics.json", metrics)
    except BaseException as error:  # noqa: BLE001  this is the process's last line of defence: say it, then exit
        _log(traceback.format_exc())
        if not isinstance(error, Exception):
            return 130
        known = classified(error)
        write_json(work / "error.json", {"type": type(known).__name__, "message": redact(str(known))})
        return known.exit_code
    return 0


def quiet() -> None:
    """Keep what is known to be harmless out of the log."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of GPU kernels wherever it is imported
    warnings.filterwarnings("ignore", category=FutureWarning, module="trl|transformers|peft")
    for said in HARMLESS:
        warnings.filterwarnings("ignore", message=said)


def classified(error: Exception) -> AlignError:
    """What `error` is to people."""
    if isinstance(error, AlignError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return OutOfMemory(f"out of memory: {text.splitlines()[0] if text else 'allocation failed'}")
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
    return AlignError(
        f"{type(error).__name__}: {text.splitlines()[0] if text else ''} (at {Path(place.filename).name}:{place.lineno})"
    )


def _log(line: str) -> None:
    sys.stdout.write(line.rstrip("\n") + "\n")


def _progress(progress: Progress) -> None:
    sys.stdout.write(EVENT + json.dumps(progress._asdict()) + "\n")


def _imported(descriptor: int) -> Path:
    """Import what any job may need, then wait; returns in each fork, with the file of its job."""
    quiet()
    for job in JOBS:
        import_module(f"tasks.training.{job}")
    gc.freeze()
    path = until_forked(descriptor)
    import_module("torch").set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return path


if __name__ == "__main__":
    code = main(_imported(int(sys.argv[2])) if sys.argv[1] == FORKED else Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # skip the interpreter's tear-down of torch's thread pools: it can hang and has nothing left to do
