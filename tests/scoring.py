"""Small score tables for the tests of this folder and of the stages that judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def row(
    metric: str, item: str, value: Any, *, subject: str | None = "", cluster: str | None = None, weight: float = 1.0
) -> dict[str, Any]:
    """One score; the cluster is the item unless given."""
    return {"subject": subject, "metric": metric, "item": item, "cluster": cluster or item, "value": value, "weight": weight}


def rows(metric: str, values: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """One score per value; items are i000, i001, ..."""
    return [row(metric, f"i{i:03d}", value, **more) for i, value in enumerate(values)]


def write(folder: Path, table: Sequence[Mapping[str, Any]]) -> Path:
    """Write `scores.parquet` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"value": pa.float64(), "weight": pa.float64()}
    schema = pa.schema(
        [(name, kinds.get(name, pa.string())) for name in ("subject", "metric", "item", "cluster", "value", "weight")]
    )
    pq.write_table(pa.Table.from_pylist([dict(line) for line in table], schema=schema), folder / "scores.parquet")
    return folder
