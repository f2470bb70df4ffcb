"""Children that start warm: forks of one process that has imported torch and its libraries, and done nothing else.

Importing takes a child longer than many a stage takes to compute.  The process that is forked belongs to this one and ends
with it; a fork becomes a child of this process itself, as if it had been started here.  Only for children on the CPU: a
driver of GPUs that was asked anything does not survive a fork.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from tasks.core.provenance import ROOT
from tasks.core.stop import check

FORKED = "--forked"
"""argument of `tasks.training`, with the descriptor of the socket where the process to be forked hears of jobs"""
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2): what a fork's own parent leaves behind becomes ours"""
_READY_SECONDS = 120.0
_GO = b"go"
_POLL_SECONDS = 0.2


class Fork:
    """A child that was forked; what `subprocess.Popen` offers of one, as far as it is needed."""

    def __init__(self, pid: int, stdout: IO[bytes]) -> None:
        """Of process `pid`, a child of this process whose output comes through `stdout`."""
        self.pid, self.stdout = pid, stdout
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.  Raises subprocess.TimeoutExpired if that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([FORKED, str(self.pid)], timeout or 0)
            time.sleep(0.01)
        return code


class _Origin:
    """The process that is forked."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.worked = False
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.training", FORKED, str(theirs.fileno())],
                cwd=ROOT, env=_alone(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip

    def fork(self, work: Path, environment: Mapping[str, str]) -> Fork | None:
        """A child in `work`; None if there can be none.  Raises what `check` raises, and leaves no child then."""
        asked = json.dumps({"work": str(work), "environment": dict(environment), "parent": os.getpid()}).encode()
        read, write = os.pipe()
        with ExitStack() as stack:
            stdout = stack.enter_context(os.fdopen(read, "rb"))
            ours, theirs = map(stack.enter_context, socket.socketpair())
            try:
                socket.send_fds(self._channel, [asked], [write, theirs.fileno()])
            except OSError:  # it has ended
                return None
            finally:
                os.close(write)
            theirs.close()
            if pid := self._pid(ours):
                ours.sendall(_GO)
                self.worked = True
                stack.pop_all()
                ours.close()
                return Fork(pid, stdout)
        return None

    def _pid(self, talk: socket.socket) -> int | None:
        """What the fork says of itself; None where nobody does.  One that is not answered ends itself."""
        deadline = time.monotonic() + _READY_SECONDS
        talk.settimeout(_POLL_SECONDS)
        while time.monotonic() < deadline:
            check()
            with suppress(TimeoutError):
                said = talk.recv(32)
                return int(said) if said else None
        return None

    def end(self) -> None:
        """Kill it; its forks are children of this process, and go on."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


_origins: list[_Origin] = []
"""one, once a child was asked for"""
_one = threading.Lock()


def fork(work: Path, environment: Mapping[str, str]) -> Fork | None:
    """A child of this process that does the job in folder `work`, in a process group of its own; None if it must be started cold.

    Raises what `tasks.core.stop.check` raises.
    """
    with _one:
        if not _origins:
            _origins.append(_Origin(environment))
        [origin] = _origins
    child = origin.fork(work, environment)
    if child is None and origin.worked:  # it was killed: another may take its place; one that never could will not
        with _one:
            if origin in _origins:
                _origins.remove(origin)
                origin.end()
    return child


def _alone(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that may have one thread only: a fork keeps no other."""
    return {**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def until_forked(descriptor: int) -> Path:
    """Wait for jobs at socket `descriptor` and fork for each; returns only in a fork, as its own program: the job's file.

    Ends this process when the other end is closed.
    """
    channel = socket.socket(fileno=descriptor)
    while True:
        asked, given, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not asked or len(list(Path("/proc/self/task").iterdir())) > 1:  # a fork would lose all threads but one
            os._exit(0)
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            channel.close()
            return _become(json.loads(asked), *given)
        os.waitpid(between, 0)
        for one in given:
            os.close(one)


def _become(asked: Mapping[str, Any], stdout: int, talk: int) -> Path:
    """Turn this process into the child that was asked for."""
    parent: int = asked["parent"]
    environment: dict[str, str] = asked["environment"]
    while os.getppid() != parent:  # until who forked this has ended and the parent has taken it over
        if not Path(f"/proc/{parent}").exists():
            os._exit(1)
        time.sleep(0.0005)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if threshold := environment.get("MALLOC_MMAP_THRESHOLD_"):
        ctypes.CDLL(None).mallopt(-3, int(threshold))  # M_MMAP_THRESHOLD: glibc has read its environment already
    work = Path(asked["work"])
    os.chdir(work)
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    os.close(stdout)
    with socket.socket(fileno=talk) as waiting:
        waiting.sendall(str(os.getpid()).encode())
        if waiting.recv(len(_GO)) != _GO:  # nobody waits for this child any more
            os._exit(1)
    return work / "job.json"
