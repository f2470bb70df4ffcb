"""A source becomes records: compression, then encoding, then format, each told from the content before the file's name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import AlignError, DataError
from tasks.reading import jsonfiles, tables
from tasks.reading.compression import MAGIC, compression, opened
from tasks.reading.encoding import SAMPLE, detect, marked, text, undecodable
from tasks.reading.images import SUFFIXES
from tasks.reading.record import Record, refused
from tasks.reading.rows import ANSWER, DIALOGUE, INPUT, PROMPT
from tasks.reading.spec import Format, SourceSpec

_KNOWN_COLUMNS = frozenset((*PROMPT, *INPUT, *ANSWER, *DIALOGUE, "chosen", "rejected", "text", "system"))
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of a source, and what it turned out to be."""

    path: Path
    source: str
    """what the `source` column says"""
    format: Format
    encoding: str
    compression: str | None

    def described(self) -> str:
        """For the report: `jsonl, gzip, utf-8`."""
        return ", ".join(part for part in (self.format, self.compression, self.encoding) if part)

    def records(self, spec: SourceSpec, work: Path) -> Iterator[Record]:
        """Every record of the file, in order.  Raises DataError where it cannot be read to its end."""
        if self.format == "parquet":
            yield from tables.parquet(self.path, work)
            return
        if self.format == "dataset":
            yield from tables.hub(spec) if spec.hub else tables.saved(self.path, spec)
            return
        where = str(self.path)
        with opened(self.path) as stream, text(stream, self.encoding) as lines:
            try:
                match self.format:
                    case "json":
                        yield from jsonfiles.documents(lines, self.encoding, where, spec.rows)
                    case "csv" | "tsv":
                        yield from tables.delimited(lines, self.encoding, where, _delimiter(self))
                    case "text":
                        yield from paragraphs(lines, self.encoding, blank=_has_blank_lines(self))
                    case _:
                        yield from jsonfiles.lines(lines, self.encoding)
            except UnicodeError as error:
                raise DataError(f"{where}: cannot be decoded as {self.encoding} ({error}); name its `encoding`") from error


def files(spec: SourceSpec, path: Path | None) -> list[File]:
    """The files of a source.  `path` is None for a hub data set.  Raises DataError where there is nothing to read."""
    if spec.hub:
        return [File(Path(spec.hub), spec.name, "dataset", "", None)]
    if path is None:
        raise AlignError(f"source {spec.name}: no input was given for it")
    if path.is_dir():
        if spec.format == "dataset" or tables.is_saved(path):
            return [File(path, spec.name, "dataset", "", None)]
        found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        inside = [file for file in found if file.suffix.lower() not in SUFFIXES]
        if not inside:
            held = "only images in it" if found else "the folder is empty"
            raise DataError(f"{path}: {held}; name a file, or a folder written by save_to_disk")
        return [_file(spec, file, f"{spec.name}/{file.relative_to(path).as_posix()}") for file in inside]
    if not path.is_file():
        raise DataError(f"{path}: no such file; is the path in the plan right?")
    return [_file(spec, path, spec.name)]


def paragraphs(stream: Iterator[str], encoding: str, *, blank: bool) -> Iterator[Record]:
    """Plain text: paragraphs between blank lines, or, where the file has none (`blank` is False), its lines."""
    held: list[str] = []
    start = 1
    number = 0
    for number, line in enumerate(stream, 1):
        body = line.rstrip("\r\n")
        if body.strip():
            start = number if not held else start
            held.append(body)
        if held and (not blank or not body.strip()):
            yield _paragraph(start, held, encoding)
            held = []
    if held:
        yield _paragraph(start, held, encoding)


def _paragraph(start: int, held: list[str], encoding: str) -> Record:
    whole = "\n".join(held)
    if undecodable(whole, encoding):
        return refused(start, whole, f"not {encoding}")
    return Record(start, whole, whole)


def _file(spec: SourceSpec, path: Path, source: str) -> File:
    kind = compression(path)
    with opened(path) as stream:
        sample = stream.read(SAMPLE)
        complete = len(sample) < SAMPLE or not stream.read(1)
    if not sample.strip(b"\0 \t\r\n"):
        raise DataError(f"{path}: the file is empty; was it written completely?")
    if sample.startswith(b"PAR1"):
        return File(path, source, "parquet", "", kind)
    if sample.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: a Git LFS pointer, not the data; fetch it with `git lfs pull`")
    encoding = marked(sample) or spec.encoding or detect(sample, complete=complete, where=str(path))
    head = _decoded(sample, encoding)
    layout = spec.format if spec.format != "auto" else _layout(path, head, spec)
    return File(path, source, layout, encoding, kind)


def _decoded(sample: bytes, encoding: str) -> str:
    return sample.decode(encoding, "ignore").lstrip("\ufeff")


def _layout(path: Path, head: str, spec: SourceSpec) -> Format:
    """What the file is: its content decides where it speaks clearly, its name where it does not."""
    named = _SUFFIXES.get(_suffix(path))
    first, _, rest = _first_line(head)
    if spec.rows is not None:
        return "json"
    if head.lstrip().startswith("[") and named != "text" and (named != "csv" or jsonfiles.is_value(first)):
        array = not jsonfiles.is_value(first) or not rest.strip()
        return "json" if array else "jsonl"
    if head.lstrip().startswith("{") and named != "text":
        return "jsonl" if jsonfiles.is_value(first) or not _spans_lines(head) else "json"
    if named in ("csv", "tsv", "text"):
        return named
    if jsonfiles.is_value(first):
        return "jsonl"
    for delimiter, layout in ((",", "csv"), ("\t", "tsv")):
        cells = [cell.strip().strip('"') for cell in first.split(delimiter)]
        if _KNOWN_COLUMNS & set(cells) and all(re.fullmatch(r"[\w .-]{0,64}", cell) for cell in cells):
            return layout  # pyright: ignore[reportReturnType]
    return named or "text"


def _spans_lines(head: str) -> bool:
    """Whether the first object goes on over several lines: its first line alone opens it."""
    first, _, rest = _first_line(head)
    return first.strip() in ("{", '{"') or (rest.lstrip()[:1] in ('"', "}") and not jsonfiles.is_value(first))


def _first_line(head: str) -> tuple[str, str, str]:
    match = re.search(r"[\r\n]+", body := head.lstrip())
    return (body[: match.start()], "\n", body[match.end() :]) if match else (body, "", "")


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1].lstrip(".") in (*MAGIC, "gz", "zst", "bz2", "xz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _delimiter(file: File) -> str:
    if file.format == "tsv":
        return "\t"
    with opened(file.path) as stream:
        header, _, _ = _first_line(_decoded(stream.read(SAMPLE), file.encoding))
    return max(",;\t", key=lambda d: (header.count(d), d == ","))


def _has_blank_lines(file: File) -> bool:
    with opened(file.path) as stream:
        head = _decoded(stream.read(SAMPLE), file.encoding)
    return bool(re.search(r"(\r\n|\n|\r)[ \t\u3000]*(\r\n|\n|\r)[ \t\u3000]*\S", head))
