"""Child processes: every stage that touches torch runs in one, in a process group of its own.

Its log and progress stream to the caller.  A timeout, a stop, or the death of this process kills the whole tree.  How it
ended decides the error: what the child said itself, out of memory, killed, or a bug.
"""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Literal

from tasks.core.contract import Inputs, Metrics, Progress, Run, Usage
from tasks.core.errors import ERRORS, AlignError, Killed, MachineError, OutOfMemory, TimedOut
from tasks.core.files import remove, write_json
from tasks.core.provenance import ROOT
from tasks.core.secrets import redact
from tasks.core.spec import Spec, to_json
from tasks.core.stop import check
from tasks.core.warm import Fork, fork

EVENT = "\x1e"
"""a child's stdout line that starts with this is a progress event in JSON; every other line is its log"""
PARENT = "ALIGN_WORKER"
"""environment: process id of the worker that starts flow runs; they end with it"""
_USAGE = "usage-{}.json"
"""in the work folder, one of each process: what it took"""
MICRO_BATCH = "micro_batch"
"""file in the work folder: what the child used; halved after it ran out of memory"""

# The child asks the kernel to be killed with its parent, then becomes the program.  No preexec_fn: it is unsafe with threads.
_TIED = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);os.execv(sys.argv[2],sys.argv[2:])"
)
_JOB = [sys.executable, "-m", "tasks.training", "job.json"]
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0


def run_child(job: str, spec: Spec, inputs: Inputs, out: Path, run: Run, *, network: bool = False) -> Metrics:
    """Run `tasks.training`'s `job` on `spec` and `inputs`, writing under `out`; return its metrics.

    `network` lets it ask the hub, unless HF_HUB_OFFLINE of this process forbids that; no other child may.
    Raises what the child raised, OutOfMemory, Killed, TimedOut, or AlignError for a crash nobody foresaw.
    """
    work = run.work
    execution = run.execution.model_dump()
    if (used := work / MICRO_BATCH).exists():
        # what an earlier attempt could hold; a plan that asks for less since then is heard
        execution["micro_batch"] = min(int(used.read_text()), run.execution.micro_batch or sys.maxsize)
    write_json(
        work / "job.json",
        {
            "job": job,
            "spec": to_json(spec),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "out": str(out),
            "work": str(work),
            "models": str(run.models),
            "execution": execution,
        },
    )
    for old in (work / "metrics.json", work / "error.json", *work.glob(_USAGE.format("*"))):
        remove(old)
    oom_kills = _oom_kills()
    code, tail = _stream(_command(run.execution.processes), work, run, network=network)
    if (work / "error.json").exists():
        error = json.loads((work / "error.json").read_text())
        raised = ERRORS.get(error["type"], AlignError)(error["message"])
        raise _smaller(work, raised) if isinstance(raised, OutOfMemory) else raised
    if code == 0 and (work / "metrics.json").exists():
        if processes := [Usage(**json.loads(file.read_text())) for file in sorted(work.glob(_USAGE.format("*")))]:
            run.used(_side_by_side(processes))
        return json.loads((work / "metrics.json").read_text())
    if _oom_kills() > oom_kills:
        raise _smaller(work, OutOfMemory(f"{job}: the kernel ended the child for want of memory"))
    if code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM):
        raise Killed(f"{job}: the child was killed (exit {code}); it is started again from its last complete checkpoint")
    raise AlignError(f"{job}: the child ended with exit {code} and left no result; its last words: {' / '.join(tail) or 'none'}")


def report_usage(work: Path, rank: int) -> None:
    """Leave in `work` what this process, a child's only one or its `rank`th, used; called as its last act."""
    times = os.times()
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None
    cpu = times.user + times.system + times.children_user + times.children_system
    write_json(work / _USAGE.format(rank), Usage(cpu, resident("VmHWM"), gpu)._asdict())


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes this process holds in memory now, or held at most since it was started.

    Not `ru_maxrss`, which begins at what the parent held when it made this process.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _side_by_side(processes: list[Usage]) -> Usage:
    gpu = [one.gpu_bytes for one in processes if one.gpu_bytes is not None]
    return Usage(sum(one.cpu_seconds for one in processes), sum(one.peak_bytes for one in processes), sum(gpu) if gpu else None)


def tied(command: list[str]) -> list[str]:
    """`command`, to be killed by the kernel when the thread that starts it, or its process, dies."""
    return [sys.executable, "-c", _TIED, str(os.getpid()), *command]


def end_with(parent: int) -> None:
    """End this process politely, by SIGTERM, when `parent`, which started it, dies.  For the main thread."""

    def orphaned(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the kernel sends one for each thread of the parent
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, orphaned)
    ctypes.CDLL(None).prctl(1, signal.SIGUSR1)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGUSR1)


def _start(command: list[str], work: Path, run: Run, *, network: bool) -> "subprocess.Popen[bytes] | Fork":
    """A child in `work`: forked from one that has imported everything where that can be, else started by `command`.

    One that may use the network is started: what a fork has imported was told that it may not.
    """
    warm = command == _JOB and not network and (run.execution.device == "cpu" or not _gpus())
    if warm and (child := fork(work, environment(run))):
        return child
    return subprocess.Popen(
        tied(command),
        cwd=work, env=environment(run, network=network),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _gpus(devices: Path = Path("/dev")) -> bool:
    """Whether there is a GPU that a child could take: NVIDIA's, AMD's (kfd), or that of Windows under WSL (dxg)."""
    return any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("kfd", "dxg"))


def _command(processes: int) -> list[str]:
    if processes == 1:
        return _JOB
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *_JOB[1:]]


def environment(run: Run, *, network: bool = False) -> dict[str, str]:
    """Environment of a child: our modules, its share of the cores, and no network unless the stage is for that."""
    threads = run.execution.threads or max(1, (os.cpu_count() or 1) // (run.execution.parallel * run.execution.processes))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of a busy machine wait for each other: up to 6 times slower
        "TOKENIZERS_PARALLELISM": "false",
        # A child gets paths of files that are here, never names to fetch.
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0") if network else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if run.execution.gradient_checkpointing:
        # Else glibc's heap keeps what each block freed (see `tasks.memory`), and recomputing saves a quarter instead of half.
        environment["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    if run.execution.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    return environment


def _stream(command: list[str], work: Path, run: Run, *, network: bool) -> tuple[int, list[str]]:
    """Run to the end, forwarding lines; return exit code and the last lines of the log."""
    deadline = time.monotonic() + 60 * run.execution.timeout_minutes
    tail: deque[str] = deque(maxlen=5)
    check()
    process = _start(command, work, run, network=network)
    try:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            pending = b""
            while True:
                check()
                if time.monotonic() > deadline:
                    raise TimedOut(f"no result after {run.execution.timeout_minutes:g} minutes; raise execution.timeout_minutes?")
                if not ready.select(_POLL_SECONDS):
                    if process.poll() is not None:
                        break  # a grandchild may hold the pipe open; the child itself is gone
                    continue
                chunk = process.stdout.read(65536)
                if chunk == b"":
                    break
                *lines, pending = (pending + (chunk or b"")).split(b"\n")
                for line in lines:
                    _forward(line.decode(errors="replace"), run, tail)
            _forward(pending.decode(errors="replace"), run, tail)
        return process.wait(), list(tail)
    finally:
        _end(process)


def _forward(line: str, run: Run, tail: deque[str]) -> None:
    if line.startswith(EVENT):
        run.progress(Progress(**json.loads(line[1:])))
    elif text := redact(line.rpartition("\r")[2].strip()):
        tail.append(text)
        run.log(text)


def _end(process: "subprocess.Popen[bytes] | Fork") -> None:
    """Kill what is left of the child's process group: politely, then for good."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            time.sleep(0.05)  # its own children, now orphans, get a moment before they are killed
    process.wait()
    if process.stdout:
        process.stdout.close()


def _smaller(work: Path, error: OutOfMemory) -> MachineError:
    """Halve the micro-batch for the next attempt: accumulation doubles, the maths stays."""
    used = work / MICRO_BATCH
    size = int(used.read_text()) if used.exists() else 1
    if size <= 1:
        return MachineError(f"{error}, at one row at a time; shorten max_length, use qlora, or take a larger machine")
    used.write_text(str(size // 2))
    return OutOfMemory(f"{error}; the next attempt uses micro_batch {size // 2} instead of {size}")


def _oom_kills() -> int:
    try:
        events = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    return int(dict(zip(events[::2], events[1::2], strict=False)).get("oom_kill", 0))
