"""JSON Lines, arrays and documents, one record at a time.  A line that is not JSON is refused; a broken array is an error."""

import json
from collections.abc import Iterable, Iterator
from typing import TextIO, cast

from tasks.core.errors import DataError
from tasks.reading.encoding import printable, undecodable
from tasks.reading.record import Record, refused

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


class _Twice(ValueError):
    """A key appears twice in one object: either value could be meant."""


def lines(stream: Iterable[str], encoding: str) -> Iterator[Record]:
    """JSON Lines: a record a line; blank lines are none."""
    for number, line in enumerate(stream, 1):
        raw = line.rstrip("\r\n")
        if not raw.strip():
            continue
        if undecodable(raw, encoding):
            yield refused(number, raw, f"not {encoding}")
        else:
            yield _parsed(number, raw)


def documents(stream: TextIO, encoding: str, where: str, rows: str | None = None) -> Iterator[Record]:
    """The elements of a JSON array, or one or more objects that span lines.  With `rows`, the list under that key."""
    if rows is not None:
        yield from _under(stream, encoding, where, rows)
        return
    scan = _Scan(stream, encoding, where)
    first = scan.peek()
    array = first == "["
    if array:
        scan.skip(1)
    while (char := scan.peek()) is not None and not (array and char == "]"):
        line, raw, value = scan.value()
        yield _checked(line, raw, value)
        if array and (char := scan.peek()) == ",":
            scan.skip(1)
            if scan.peek() == "]":
                raise scan.error("a comma before the end of the array")
        elif array and char != "]":
            raise scan.error("the array is not closed" if char is None else "a comma is missing")
    if array:
        if scan.peek() is None:
            raise scan.error("the array is not closed")
        scan.skip(1)
        if scan.peek() is not None:
            raise scan.error("there is more after the array")


def is_value(line: str) -> bool:
    """Whether `line` alone is JSON."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _under(stream: TextIO, encoding: str, where: str, rows: str) -> Iterator[Record]:
    _, _, value = _Scan(stream, encoding, where).value()
    found = cast(dict[str, object], value).get(rows) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{where}: there is no list under {rows!r}; check `rows` of the source")
    for number, item in enumerate(cast(list[object], found), 1):
        yield _checked(number, json.dumps(item, ensure_ascii=False), item)


def _parsed(line: int, raw: str) -> Record:
    try:
        value = _DECODER.decode(raw)
    except _Twice as error:
        return refused(line, raw, f"a key appears twice: {error}")
    except json.JSONDecodeError as error:
        return refused(line, raw, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return refused(line, raw, "not JSON: nested too deeply")
    except ValueError as error:
        return refused(line, raw, f"not JSON: {error}")
    return _checked(line, raw, value)


def _checked(line: int, raw: str, value: object) -> Record:
    """Refuse what is JSON but cannot be stored as text: half a surrogate pair."""
    if "\\u" in raw and ("\\ud" in raw or "\\uD" in raw):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return refused(line, raw, "half a surrogate pair in the text")
    return Record(line, raw, value)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _Scan:
    """Values one after another out of a stream, holding no more than the value at hand."""

    def __init__(self, stream: TextIO, encoding: str, where: str) -> None:
        self._stream, self._encoding, self._where = stream, encoding, where
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def peek(self) -> str | None:
        """The next character that is not a space; None at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._line += self._new_line(self._at)
                self._at += 1
            if not self._more():
                return None

    def skip(self, count: int) -> None:
        self._at += count

    def value(self) -> tuple[int, str, object]:
        """`(line, raw, value)` of the next value.  Raises DataError where there is none."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except _Twice as error:
                raise self.error(f"a key appears twice: {error}") from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError as error:
                if not self._more(size):
                    raise self.error(getattr(error, "msg", str(error)), getattr(error, "pos", self._at)) from None
            else:
                if end < len(self._text) or not self._more(size):
                    return self._take(end, value)
            size *= 2

    def _take(self, end: int, value: object) -> tuple[int, str, object]:
        raw, line = self._text[self._at : end], self._line
        if undecodable(raw, self._encoding):
            raise self.error(f"bytes that are not {self._encoding}")
        self._line += raw.count("\n") or raw.count("\r")
        self._at = end
        return line, printable(raw), value

    def error(self, what: str, at: int | None = None) -> DataError:
        """Where the array broke."""
        passed = self._text[self._at : at] if at is not None else ""
        return DataError(
            f"{self._where}: not valid JSON: {what} at line {self._line + passed.count(chr(10))}; is the file complete?"
        )

    def _new_line(self, at: int) -> bool:
        char = self._text[at]
        return char == "\n" or (char == "\r" and self._text[at + 1 : at + 2] != "\n")

    def _more(self, size: int = _CHUNK) -> bool:
        if self._ended:
            return False
        chunk = self._stream.read(size)
        self._ended = not chunk
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)
