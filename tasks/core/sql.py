# pyright: basic
"""SQL files as tables: `datasets/sql/<folder>/<table>.sql` holds one SELECT, and what it selects becomes `<table>`.

Parameters are `$names` and only values; a file's text is part of the identity of what is built with it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import AlignError
from tasks.core.files import remove
from tasks.core.provenance import ROOT
from tasks.core.spec import Json

SQL = ROOT / "datasets" / "sql"
_ROWS = 50_000
"""rows of one Parquet row group: fixed, so that equal tables are equal files"""
_PARAMETER = re.compile(r"\$([a-z_]+)")


def text(name: str) -> str:
    """The SQL of `folder/table`."""
    return (SQL / f"{name}.sql").read_text(encoding="utf-8")


def texts(names: Iterable[str]) -> dict[str, str]:
    """Name -> SQL, as an identity wants them."""
    return {name: text(name) for name in names}


class Database:
    """A DuckDB database that spills to `work` where it outgrows memory.  Leaving the block deletes it."""

    def __init__(self, work: Path, threads: int | None = None, memory: str | None = None) -> None:
        """Open a fresh database; `memory` as DuckDB writes it (`"2GB"`), by default most of what the machine has."""
        work.mkdir(parents=True, exist_ok=True)
        self._spill = work / "duckdb.spill"
        settings: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": str(self._spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if threads is not None:
            settings["threads"] = threads
        if memory is not None:
            settings["memory_limit"] = memory
        self._connection = duckdb.connect(config=settings)

    def __enter__(self) -> "Database":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close and delete what was spilled."""
        self._connection.close()
        remove(self._spill)

    def create(self, table: str, schema: pa.Schema) -> None:
        """An empty table with the columns of `schema`."""
        self._connection.register("incoming", schema.empty_table())
        self._connection.execute(f"create table {_name(table)} as select * from incoming")
        self._connection.unregister("incoming")

    def append(self, table: str, rows: pa.Table) -> None:
        """Add `rows` to a table."""
        self._connection.register("incoming", rows)
        self._connection.execute(f"insert into {_name(table)} select * from incoming")
        self._connection.unregister("incoming")

    def build(self, name: str, values: Mapping[str, Json] | None = None, *, table: str | None = None) -> None:
        """Make the table of `folder/table` (or call it `table`), with `values` for the parameters it names."""
        query = text(name)
        wanted = set(_PARAMETER.findall(query))
        if missing := sorted(wanted - set(values or {})):
            raise AlignError(f"{name}.sql needs the parameter ${missing[0]}, and nobody gave it")
        used = {key: value for key, value in (values or {}).items() if key in wanted}
        made = _name(table or name.rpartition("/")[2])
        self._connection.execute(f"create or replace table {made} as {query.rstrip().rstrip(';')}", used or None)

    def rename(self, table: str, to: str) -> None:
        """Let a table take the place of another."""
        self._connection.execute(f"drop table if exists {_name(to)}")
        self._connection.execute(f"alter table {_name(table)} rename to {_name(to)}")

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """All rows of a small result."""
        return self._connection.execute(query).fetchall()

    def write(self, table: str, path: Path, schema: pa.Schema, *, where: str = "true") -> int:
        """Write the rows of a table, in its `place` order, as Parquet with exactly `schema`; how many there were."""
        columns = ", ".join(_name(name) for name in schema.names)
        result = self._connection.sql(f"select {columns} from {_name(table)} where {where} order by place")
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            return sum(_written(writer, group) for group in _groups(result.to_arrow_reader(_ROWS), schema))


def _written(writer: pq.ParquetWriter, group: pa.Table) -> int:
    writer.write_table(group, row_group_size=_ROWS)
    return group.num_rows


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in groups of one fixed size, however DuckDB cut its batches."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]).cast(schema))
        count += batch.num_rows
        while count >= _ROWS:
            table = pa.concat_tables(held).combine_chunks()
            yield table.slice(0, _ROWS).combine_chunks()
            held, count = [table.slice(_ROWS)], count - _ROWS
    if count:
        yield pa.concat_tables(held).combine_chunks()


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z_]+", name):
        raise AlignError(f"{name!r} is not the name of a table or column")
    return f'"{name}"'
