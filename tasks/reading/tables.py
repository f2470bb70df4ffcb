# pyright: basic
"""CSV and TSV, Parquet, Hugging Face data sets.  A row of another width than its header is refused, never padded or skipped."""

import csv
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataError, MachineError
from tasks.reading.compression import opened
from tasks.reading.encoding import undecodable
from tasks.reading.record import Record, as_raw, refused

if TYPE_CHECKING:
    from tasks.reading.spec import SourceSpec

_BATCH = 1024
csv.field_size_limit(2**31 - 1)


def delimited(stream: Iterable[str], encoding: str, where: str, delimiter: str) -> Iterator[Record]:
    """The rows of a CSV file under their header.  Raises DataError for a header that repeats a name and a quote left open."""
    header: list[str] | None = None
    for line, raw, cells, reason in _csv_rows(stream, where, delimiter):
        if header is None:
            if reason is not None or undecodable(raw, encoding):
                raise DataError(
                    f"{where}: the header is broken ({reason or f'it is not {encoding}'}); the first line names the columns"
                )
            header = _header(cells, where)
        elif reason is not None:
            yield refused(line, raw, reason)
        elif undecodable(raw, encoding):
            yield refused(line, raw, f"not {encoding}")
        elif len(cells) != len(header):
            yield refused(line, raw, f"ragged row: {len(cells)} cells under {len(header)} columns")
        else:
            yield Record(line, raw, dict(zip(header, cells, strict=True)))


class _CsvRow(NamedTuple):
    """A row of a CSV file that is not blank."""

    line: int
    """its first"""
    raw: str
    cells: list[str]
    reason: str | None
    """why it cannot be read"""


def _csv_rows(stream: Iterable[str], where: str, delimiter: str) -> Iterator[_CsvRow]:
    """Each row beside the text that it was read from, which may be several lines."""
    taken: list[str] = []

    def remember() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line

    rows = csv.reader(remember(), delimiter=delimiter, strict=True)
    line = 1
    while True:
        taken.clear()
        reason = None
        cells: list[str] = []
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{where}: a quote opened at line {line} is never closed; close it, or double it") from None
            reason = f"not a CSV row: {error}"
        start, line = line, line + len(taken)
        if reason is None and not any(cell.strip() for cell in cells):
            if len(cells) <= 1:
                continue  # a blank line
            reason = "every cell is empty"
        yield _CsvRow(start, "".join(taken).rstrip("\r\n"), cells, reason)


def _header(row: list[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: the header names {twice[0]!r} twice; rename one of them")
    return names


def parquet(path: Path, work: Path) -> Iterator[Record]:
    """The rows of a Parquet file, compressed as a whole or not.  Raises DataError where it is damaged."""
    with tempfile.TemporaryDirectory(dir=work) as scratch, opened(path) as stream:
        plain = path
        if not _is_plain(path):
            plain = Path(scratch, "table.parquet")  # Parquet is read from its end, a compressed stream from its start
            with plain.open("wb") as file:
                shutil.copyfileobj(stream, file)
        try:
            with pq.ParquetFile(plain) as file:
                yield from _rows(file.iter_batches(batch_size=_BATCH))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: the Parquet file is damaged ({_line(error)}); copy it again") from error


def saved(path: Path, spec: "SourceSpec") -> Iterator[Record]:
    """The rows of a folder written by `save_to_disk`."""
    import datasets  # slow to import, and only needed here

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: this data set folder cannot be opened ({_line(error)}); save it again") from error
    yield from _dataset(found, spec, str(path))


def hub(spec: "SourceSpec") -> Iterator[Record]:
    """The rows of a hub data set at a pinned commit.  Raises MachineError when the hub cannot be reached."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        found = datasets.load_dataset(str(spec.hub), name=spec.config, revision=spec.revision)
    except (ConnectionError, TimeoutError) as error:
        raise MachineError(f"{spec.hub}: the hub cannot be reached ({_line(error)}); is this machine offline?") from error
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:
        raise DataError(f"{spec.hub}@{spec.revision}: cannot be loaded ({_line(error)}); check the id and the commit") from error
    yield from _dataset(found, spec, str(spec.hub))


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and (path / "dataset_info.json").is_file())


def _dataset(found: Any, spec: "SourceSpec", where: str) -> Iterator[Record]:  # noqa: ANN401  datasets is untyped
    if isinstance(found, dict):
        names = sorted(cast(dict[str, Any], found))
        split = spec.split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if split not in names:
            raise DataError(f"{where}: it has the splits {', '.join(names)}; name one of them with `split`")
        found = found[split]
    elif spec.split not in (None, str(found.split)):
        raise DataError(f"{where}: it is one table without splits; leave `split` out")
    yield from _rows(found.with_format("arrow").iter(batch_size=_BATCH))


def _rows(batches: Iterable[Any]) -> Iterator[Record]:
    row = 0
    for batch in batches:
        for value in batch.to_pylist():
            row += 1
            yield Record(row, as_raw(value), value)


def _is_plain(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]
