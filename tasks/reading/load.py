# pyright: basic
"""Sources become two tables: `records`, one row for each record read, and `items`, one for each thing it says."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from tasks.core.contract import Inputs, Progress, Run
from tasks.core.errors import DataError
from tasks.core.spec import Json
from tasks.core.sql import Database
from tasks.reading.images import Album
from tasks.reading.record import Record
from tasks.reading.rows import Item, optional
from tasks.reading.schemas import RawKind, Schemas
from tasks.reading.sources import File, files
from tasks.reading.spec import SourceSpec
from tasks.reading.turns import Refused

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SOURCES = pa.schema([("source", pa.int32()), ("name", pa.string()), ("take", pa.string()), ("min_margin", pa.float64())])
RECORDS = pa.schema(
    [
        ("record", pa.int64()), ("source", pa.int32()), ("place", pa.string()), ("line", pa.int64()), ("shape", pa.string()),
        ("stage", pa.string()), ("reason", pa.string()), ("raw", pa.string()),
    ]
)  # fmt: skip
"""`record` numbers them over all sources; `place` is the source column; `stage` and `reason` where it was not understood"""
ITEMS = pa.schema(
    [
        ("record", pa.int64()), ("part", pa.int32()), ("task", pa.string()), ("named_group", pa.string()),
        ("messages", _MESSAGES), ("text", pa.string()), ("reference", pa.string()),
        ("rejected_prompt", _MESSAGES), ("chosen", pa.string()), ("rejected", pa.string()),
        ("chosen_score", pa.float64()), ("rejected_score", pa.float64()), ("margin", pa.float64()), ("ordinal", pa.bool_()),
        ("answers", pa.list_(pa.struct([("text", pa.string()), ("score", pa.float64())]))),
        ("answer", pa.string()), ("liked", pa.bool_()),
        ("pair", pa.string()), ("label", pa.string()), ("tokens", pa.list_(pa.string())), ("tags", pa.list_(pa.string())),
        ("question", pa.string()), ("context", pa.string()),
        ("spans", pa.list_(pa.struct([("text", pa.string()), ("start", pa.int64())]))),
        ("images", pa.list_(pa.string())),
    ]
)  # fmt: skip
_OF_ITEM = ITEMS.names[4:]
_BATCH_RECORDS = 10_000
_BATCH_CHARS = 64 << 20
_GROUPS = ("conversation_id", "dialogue_id", "message_tree_id", "prompt_id", "conversation")
_TASKS = ("task", "category")


def load(
    kind: RawKind, sources: Sequence[SourceSpec], inputs: Inputs, database: Database, run: Run, album: Album | None = None
) -> dict[str, Json]:
    """Fill `sources`, `records` and `items`; what each file turned out to be, by its `source` column.

    Inputs: `<place of the source>`, and `<place>.images` where its images lie elsewhere.  `album` keeps them; None refuses them.
    Raises DataError for a file that cannot be read to its end, or holds no record.
    """
    for table, schema in (("sources", SOURCES), ("records", RECORDS), ("items", ITEMS)):
        database.create(table, schema)
    listed = [(index, s.name, s.pairs.take, s.pairs.min_margin) for index, s in enumerate(sources)]
    database.append("sources", pa.table(list(zip(*listed, strict=True)), schema=SOURCES))
    loader = _Loader(database, run)
    layouts: dict[str, Json] = {}
    for index, spec in enumerate(sources):
        place = inputs.get(str(index))
        for file in files(spec, place):
            root = inputs.get(f"{index}.images") or (file.path.parent if place and place.is_dir() else None)
            schemas = Schemas(kind, spec, partial(album.take, root=root) if album else None)
            before = loader.count
            loader.read(index, spec, file, schemas)
            if loader.count == before:
                raise DataError(f"{file.path}: no record in it; is it the right file?")
            layouts[file.source] = file.described()
            run.log(f"{file.source}: {loader.count - before} records ({file.described()})")
    loader.flush()
    return layouts


class _Loader:
    """Collects batches, so that no more than one of them is in memory."""

    def __init__(self, database: Database, run: Run) -> None:
        self.count = 0
        self._database, self._run = database, run
        self._records: list[tuple[object, ...]] = []
        self._items: list[tuple[object, ...]] = []
        self._chars = 0

    def read(self, index: int, spec: SourceSpec, file: File, schemas: Schemas) -> None:
        self._run.work.mkdir(parents=True, exist_ok=True)
        for record in file.records(spec, Path(self._run.work)):
            self._take(index, file.source, record, schemas)
            if len(self._records) >= _BATCH_RECORDS or self._chars >= _BATCH_CHARS:
                self.flush()

    def flush(self) -> None:
        """Hand what was collected to the database."""
        for table, schema, rows in (("records", RECORDS, self._records), ("items", ITEMS, self._items)):
            if rows:
                columns = [
                    pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
                ]
                self._database.append(table, pa.table(columns, schema=schema))
                rows.clear()
        self._chars = 0
        self._run.progress(Progress(self.count, 0, {"records": self.count}))

    def _take(self, index: int, source: str, record: Record, schemas: Schemas) -> None:
        number = self.count
        self.count += 1
        self._chars += len(record.raw)
        shape, stage, reason = None, "read", record.reason
        if reason is None:
            stage = "schema"
            try:
                row = schemas.row(record.value)
                shape, items = schemas.read(row)
                found = _rows(number, index, row, items)
            except Refused as refused:
                reason = str(refused)
            else:
                stage = None
                self._items += found
        self._records.append((number, index, source, record.line, shape, stage, reason, record.raw))


def _rows(number: int, index: int, row: dict[str, object], items: Sequence[Item]) -> list[tuple[object, ...]]:
    if not items:
        raise Refused("nothing in it")
    task = optional(row, _TASKS)
    group = next((row[name] for name in _GROUPS if isinstance(row.get(name), str | int) and row[name] != ""), None)
    label = task if isinstance(task, str) and task else None
    named = f"{index}:{group}" if group is not None else None
    return [(number, part, label, named, *(getattr(item, name) for name in _OF_ITEM)) for part, item in enumerate(items)]
