"""Compressed files, told by their first bytes whatever they are called.  A stream that ends early is an error, never an end."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from tasks.core.errors import DataError

MAGIC = {
    "gzip": b"\x1f\x8b",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
}
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a rar archive"}
_CHUNK = 1 << 20


def compression(path: Path) -> str | None:
    """Name of the compression of `path`, or None.  Raises DataError for an archive of several files."""
    with path.open("rb") as file:
        head = file.read(16)
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"{path}: this is {what}; unpack it first")
    for name, magic in MAGIC.items():
        if head.startswith(magic) and (name != "bz2" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return name
    return None


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """The decompressed bytes of `path`.  Raises DataError where the stream is damaged or cut off."""
    kind = compression(path)
    try:
        with path.open("rb") as raw, _reader(kind, raw) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile, OSError) as error:
        what = f"the {kind} stream is damaged or cut off" if kind else "it cannot be read"
        raise DataError(f"{path}: {what} ({error}); copy it again") from error


def _reader(kind: str | None, raw: BinaryIO) -> BinaryIO:
    match kind:
        case "gzip":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        case "bz2":
            return cast(BinaryIO, bz2.BZ2File(raw))
        case "xz":
            return cast(BinaryIO, lzma.LZMAFile(raw))
        case "zstd":
            return cast(BinaryIO, io.BufferedReader(_Zstd(raw), _CHUNK))
        case _:
            return raw


class _Frame(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes) -> bytes: ...


class _Zstd(io.RawIOBase):
    """zstandard's own stream reader takes a truncated frame for the end of the file; this one does not."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: _Frame | None = None
        self._left = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready and self._more():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        data = self._left or self._raw.read(1 << 16)
        self._left = b""
        if not data:
            if self._frame is not None:
                raise EOFError("the last frame is not complete")
            return False
        if self._frame is None:
            self._frame = cast(_Frame, self._decoder.decompressobj())
        self._ready = self._frame.decompress(data)
        if self._frame.eof:
            self._left = self._frame.unused_data
            self._frame = None
        return True
