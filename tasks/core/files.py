"""Files on disk: content digests, durable writes, locks that a dead process cannot hold."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tasks.core.errors import DataError
from tasks.core.spec import Json, canonical, sha256
from tasks.core.stop import check

_RACY_NS = 2_000_000_000
"""a file changed this recently may change again within its timestamp's grain, so its digest is not remembered"""


def file_digest(path: Path) -> str:
    """Hex sha256 of the bytes of `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(root: Path) -> list[Path]:
    """Every file below `root`, sorted by its path."""
    return sorted(path for path in root.rglob("*") if path.is_file())


class DigestCache:
    """Content digests of files and folders, remembered while size, times and inode stay the same."""

    def __init__(self, memory: Path) -> None:
        """Remember in the file `memory`."""
        self._memory = memory
        try:
            self._known: dict[str, str] = json.loads(memory.read_text())
        except (OSError, ValueError):
            self._known = {}

    def digest(self, path: Path) -> str:
        """Hex sha256 of a file's bytes, or of a folder's file names and bytes.  Raises DataError if it is missing."""
        if path.is_file():
            return self._file(path)
        if path.is_dir() and (files := tree(path)):
            return sha256(canonical({file.relative_to(path).as_posix(): self._file(file) for file in files}))
        raise DataError(f"{path}: no such file, or an empty folder; is the path in the plan right?")

    def _file(self, path: Path) -> str:
        stat = path.stat()
        seen = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
        if seen in self._known:
            return self._known[seen]
        digest = file_digest(path)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RACY_NS and stat.st_size > 1_000_000:
            self._known[seen] = digest
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._memory, json.dumps(self._known))
        return digest


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Json) -> None:
    """Write `value` atomically, indented for people.  Raises DataError for a number that JSON has not."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"{path.name}: holds a number that is infinite or none (NaN), and JSON has no such; did it diverge?"
        ) from error
    write_atomic(path, text + "\n")


def sync(path: Path) -> None:
    """Make what is written to a file, or renamed in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold `path` for this thread alone; the kernel lets go when the process dies, however it dies."""
    with any_locked([path]):
        yield


@contextmanager
def any_locked(paths: Sequence[Path], poll_seconds: float = 0.2) -> Generator[None]:
    """Hold any one of `paths`, as `locked` does.  Polls, so that a thread that waits here ends when the flow stops."""
    with ExitStack() as files:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        candidates = [files.enter_context(path.open("a")) for path in paths]
        while not any(_lock_now(file.fileno()) for file in candidates):
            check()
            time.sleep(poll_seconds)
        yield


def held(path: Path) -> bool:
    """Whether some living process holds `path` as `locked` does."""
    with path.open("a") as file:
        return not _lock_now(file.fileno())


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
