# pyright: basic
"""Learning task after task: rows of earlier tasks mixed into a later one's, and what was forgotten.  Imports no torch."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, NonNegativeInt

from evals import forgetting
from evals.scores import Scores, Series
from tasks.continual_report import draw, markdown
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.files import write_atomic, write_json
from tasks.core.spec import Json, Spec

FORGETTING_FILE = "forgetting.json"
TEXT_FILE = "report.md"
PLOT_FILE = "forgetting.png"
EARLIER = "earlier_"
"""inputs of this name, numbered from 0, are the data of the tasks before, in order"""


class ReplaySpec(Spec):
    """Mix rows of earlier tasks into the training rows of a later one."""

    share: float = Field(gt=0, lt=1)
    """of the mixture's rows that come from earlier tasks"""
    seed: NonNegativeInt = 0
    """which rows those are; a row of an earlier task comes again only when all of them have come"""


class ForgettingSpec(Spec):
    """Put losses on every task after each task into one matrix."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """their names, in the order they were learned"""
    apart: bool = False
    """each task has an adapter of its own: a learned task is answered by its own, one that was not by the base"""
    composed: bool = False
    """a last row holds the policy that was put together from all adapters"""
    level: float = Field(default=0.95, gt=0, lt=1)
    """coverage of the intervals"""
    seed: NonNegativeInt = 0
    """of the resampling"""


class Rows(NamedTuple):
    """What a mixture must know of a task's data."""

    train: list[str]
    """conversation of each training row, ordered by id"""
    heldout: frozenset[str]
    """conversations that are held out"""


def replay(spec: ReplaySpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `train.parquet`, the rows of `data` and some of each `earlier_<n>`, and `heldout.parquet`, that of `data`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = [*(inputs[f"{EARLIER}{number}"] for number in range(len(inputs) - 1)), inputs["data"]]
    tables = [pq.read_table(folder / "train.parquet").sort_by("id") for folder in folders]
    tasks = [
        Rows(table["conversation"].to_pylist(), frozenset(_conversations(folder, "heldout")))
        for table, folder in zip(tables, folders, strict=True)
    ]
    chosen = choose(tasks, spec.share, spec.seed)
    parts = [tables[-1]]
    for number, rows in enumerate(chosen):
        taken = tables[number].take(pa.array(rows, pa.int64()))
        ids = pa.array([f"replay-{number}/{at}/{name}" for at, name in enumerate(taken["id"].to_pylist())], pa.string())
        parts.append(taken.set_column(0, "id", ids).cast(tables[-1].schema))
    mixed = pa.concat_tables(parts)
    pq.write_table(mixed, out / "train.parquet", compression="zstd", version="2.6", row_group_size=100_000)
    shutil.copyfile(inputs["data"] / "heldout.parquet", out / "heldout.parquet")
    counts = [len(rows) for rows in chosen]
    told: Metrics = {"train": mixed.num_rows, "own": tables[-1].num_rows, "replayed": sum(counts)}
    told["repeated"] = sum(len(rows) - len(set(rows)) for rows in chosen)
    report: dict[str, Json] = {**told, "of_each_earlier_task": list[Json](counts)}
    write_json(out / "report.json", report)
    run.log(f"{tables[-1].num_rows} rows of this task and {sum(counts)} of {len(counts)} before")
    return told


def choose(tasks: Sequence[Rows], share: float, seed: int) -> list[list[int]]:
    """Numbers of the rows of each earlier task that join those of the last, `share` of all, spread evenly over the tasks.

    The mixtures of the tasks before are gone through again, so that a row comes a second time only after all others of its task.
    Rows whose conversation is held out in any of the tasks, or occurs in the last one's own data, never come.
    Raises DataError where that leaves none.
    """
    orders = [random.Random(f"{seed}/{j}").sample(range(len(task.train)), len(task.train)) for j, task in enumerate(tasks)]
    used = [dict.fromkeys(order, 0) for order in orders]
    picks: list[list[int]] = []
    for i, own in enumerate(tasks):
        barred = frozenset(own.train).union(*(task.heldout for task in tasks[: i + 1]))
        picks = []
        for j, count in enumerate(quotas(len(own.train), i, share)):
            able = [row for row in orders[j] if tasks[j].train[row] not in barred]
            if count and not able:
                raise DataError(
                    f"replay: task {i + 1} may be shown no row of task {j + 1}, all of whose conversations it has itself or some "
                    "task holds out; leave replay out"
                )
            taken: list[int] = []
            while len(taken) < count:
                able.sort(key=used[j].__getitem__)  # stable: of equally worn rows the first in the task's own order
                for row in able[: count - len(taken)]:
                    used[j][row] += 1
                    taken.append(row)
            picks.append(taken)
    return picks


def quotas(own: int, earlier: int, share: float) -> list[int]:
    """How many rows of each of `earlier` tasks join `own` rows, so that their share of all is `share`: evenly, the oldest first.

    >>> quotas(90, 1, 0.1), quotas(45, 2, 0.1), quotas(10, 3, 0.5), quotas(4, 1, 0.01)
    ([10], [3, 2], [4, 3, 3], [1])
    """
    total = max(1, round(own * share / (1 - share))) if earlier else 0
    return [total // earlier + (number < total % earlier) for number in range(earlier)]


def measure(spec: ForgettingSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `forgetting.json`, `report.md` and `forgetting.png`.

    Inputs: `scores_<i>_<j>`, of task j (from 0) after i tasks, i = 0 being the base; `data_<j>`.  With `apart`, row i > j of a
    column is that of j + 1 and row i <= j that of 0, so only those are given; the row of the composed policy is given whole.
    """
    losses = _losses(spec, inputs)
    tasks = len(spec.tasks)
    rows = ["base", *(f"after {name}" for name in spec.tasks), *(["composed"] if spec.composed else [])]
    cells: list[Json] = []
    for i in range(len(rows)):
        row: list[Json] = [forgetting.cell(losses, i, j, level=spec.level, seed=spec.seed) for j in range(tasks)]
        cells.append(row)
    averages = forgetting.summary(losses, tasks, level=spec.level, seed=spec.seed)
    record: dict[str, Json] = {
        "tasks": list(spec.tasks), "rows": list[Json](rows), "apart": spec.apart, "level": spec.level, "cells": cells,
        "unit": "mean negative log-likelihood per answer token, nats", "averages": averages,
        "meanings": dict[str, Json](forgetting.MEANINGS), "seen_in_training": _leaks(spec, inputs),
    }  # fmt: skip
    write_json(out / FORGETTING_FILE, record)
    write_atomic(out / TEXT_FILE, markdown(record))
    draw(record, out / PLOT_FILE)
    return {name: value["value"] if isinstance(value, dict) else None for name, value in averages.items()}


def _losses(spec: ForgettingSpec, inputs: Inputs) -> dict[tuple[int, int], Series]:
    tasks = len(spec.tasks)
    losses: dict[tuple[int, int], Series] = {}
    for j in range(tasks):
        for i in range(tasks + 1 + spec.composed):
            of = i if not spec.apart or i > tasks else j + 1 if i > j else 0
            losses[i, j] = _series(inputs[f"scores_{of}_{j}"])
    return losses


def _series(folder: Path) -> Series:
    return Scores.read({"scores_candidate": folder}).aligned(("candidate", "answer_nll"))[0]


def _leaks(spec: ForgettingSpec, inputs: Inputs) -> dict[str, Json]:
    """Task -> how many of its held-out conversations another task trains on: what looks like remembering may be that."""
    trained = [_conversations(inputs[f"data_{j}"], "train") for j in range(len(spec.tasks))]
    found: dict[str, Json] = {}
    for j, name in enumerate(spec.tasks):
        others: set[str] = set().union(*(known for other, known in enumerate(trained) if other != j))
        if both := _conversations(inputs[f"data_{j}"], "heldout") & others:
            found[name] = len(both)
    return found


def _conversations(folder: Path, *splits: str) -> set[str]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(folder / f"{split}.parquet", columns=["conversation"]) for split in splits]
    return {str(name) for table in tables for name in table["conversation"].to_pylist()}


def read_forgetting(folder: Path) -> dict[str, Any]:
    """The record that an artifact of this kind holds."""
    return json.loads((folder / FORGETTING_FILE).read_text(encoding="utf-8"))


REPLAY = Stage("replay", 1, "instructions", replay)
"""inputs: data, earlier_0, earlier_1, ... (instructions)"""
FORGETTING = Stage("forgetting", 3, "forgetting", measure)
"""inputs: scores_<i>_<j>, data_<j>"""
