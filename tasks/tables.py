# pyright: basic
"""Parquet tables of answers and scores: fixed writer settings and sorted rows, so that equal rows give equal bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataError

ANSWERS_FILE = "answers.parquet"
PROMPTS_FILE = "prompts.parquet"
PAIRS_FILE = "train.parquet"
SCORES_FILE = "scores.parquet"
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("conversation", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.list_(_MESSAGE)),
        ("answer", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
    ]
)
QUESTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("conversation", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.list_(_MESSAGE)),
        ("reference", pa.string()),
        ("source", pa.string()),
        ("line", pa.int64()),
    ]
)
SCORES = pa.schema(
    [
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("item", pa.string()),
        ("cluster", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
    ]
)


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of the table at `path` ordered by id, the first `limit` of them.  Raises DataError if it is missing or empty."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; is the input an artifact of the right kind?")
    table = pq.read_table(path)
    if not len(table):
        raise DataError(f"{path}: the table is empty, so there is nothing to measure on; take more data, or hold more of it out")
    return table.sort_by("id").slice(0, limit).to_pylist()


def practice_prompts(folder: Path) -> list[dict[str, Any]]:
    """What a policy is to practise on: rows of id, conversation, task, prompt and reference (None where there is none), by id.

    `folder` holds prompts, or preferences, whose training pairs lend their prompts.  A prompt that comes several times (with the
    same reference) is taken once, under the first of its ids.  A column `images` is kept.
    """
    path = next((folder / name for name in (PROMPTS_FILE, PAIRS_FILE) if (folder / name).is_file()), folder / PROMPTS_FILE)
    rows = read_rows(path)
    if "prompt" not in rows[0]:
        raise DataError(f"{path}: there is no column `prompt`; give prompts, or preferences")
    distinct: dict[str, dict[str, Any]] = {}
    for row in rows:
        kept = {name: row.get(name) for name in ("id", "conversation", "task", "prompt", "reference")}
        told = json.dumps([kept["prompt"], kept["reference"], row.get("images")], sort_keys=True)
        distinct.setdefault(told, kept | ({"images": row["images"]} if "images" in row else {}))
    return list(distinct.values())


def write_answers(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `out/answers.parquet`, ordered by id.

    A column `sample` numbers the answers to one prompt where prompts were answered several times, and a column `images` is there
    where a prompt has any.
    """
    samples = [pa.field("sample", pa.int64())] if any("sample" in row for row in rows) else []
    images = [pa.field("images", pa.list_(pa.string()))] if any(row.get("images") for row in rows) else []
    order = ("id", *(field.name for field in samples))
    _write(out / ANSWERS_FILE, rows, pa.schema([*ANSWERS, *samples, *images]), order)


def write_questions(out: Path, rows: Sequence[Mapping[str, Any]], *, choices: bool) -> None:
    """Write `out/prompts.parquet`, ordered by id; with `choices`, their texts and the place of the right one as columns."""
    more = [pa.field("choices", pa.list_(pa.string())), pa.field("gold", pa.int64())] if choices else []
    schema = pa.schema([*QUESTIONS, *more])
    _write(out / PROMPTS_FILE, [{name: row[name] for name in schema.names} for row in rows], schema, ("id",))


def answer_item(answer: Mapping[str, Any]) -> str:
    """How scores name an answer: by its prompt, and by its number where there are several.

    >>> answer_item({"id": "a"}), answer_item({"id": "a", "sample": 2})
    ('a', 'a#2')
    """
    return answer["id"] if answer.get("sample") is None else f"{answer['id']}#{answer['sample']}"


def write_scores(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `out/scores.parquet`, ordered by subject, metric and item."""
    _write(out / SCORES_FILE, rows, SCORES, ("subject", "metric", "item"))


def score(metric: str, row: Mapping[str, Any], value: float, *, subject: str = "", weight: float = 1.0) -> dict[str, Any]:
    """One score of the item `row`.  No subject: it is named by the input through which the scores are judged."""
    return {
        "subject": subject,
        "metric": metric,
        "item": row["id"],
        "cluster": row["conversation"],
        "value": float(value),
        "weight": float(weight),
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, order: Sequence[str]) -> None:
    table = pa.Table.from_pylist(list(rows), schema=schema).sort_by([(name, "ascending") for name in order])
    pq.write_table(table, path, compression="zstd", version="2.6", row_group_size=100_000)
