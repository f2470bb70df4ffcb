"""What every reader yields: one record with its place and raw text, understood or not."""

import json
from typing import NamedTuple

from tasks.reading.encoding import printable


class Record(NamedTuple):
    """One record as it was read.  `reason` says why it could not be understood; then `value` means nothing."""

    line: int
    """where it starts in the file, from 1; for tables without lines, its row"""
    raw: str
    value: object
    reason: str | None = None


def refused(line: int, raw: str, reason: str) -> Record:
    """A record that could not be understood."""
    return Record(line, printable(raw), None, reason)


def as_raw(value: object) -> str:
    """A record of a binary format as text, for people and for the quarantine; bytes are told by their number."""
    return printable(json.dumps(value, ensure_ascii=False, default=_told))


def _told(value: object) -> str:
    return f"({len(value)} bytes)" if isinstance(value, bytes) else str(value)
