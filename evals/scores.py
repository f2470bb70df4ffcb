# pyright: basic, reportAttributeAccessIssue=false
"""Per-item scores of all subjects in one place, and their alignment item by item.

A score is one row of `scores.parquet` (docs/artifacts.md).  The file of a model leaves `subject` empty, so that equal models
share one artifact; who the model is comes from the name of the input: `scores_candidate` holds scores of `candidate`.
"""

from collections.abc import Collection, Mapping
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evals.statistics import Floats, Texts
from evals.suite import refuse_mixed
from tasks.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "scores.parquet"
SUBJECTS = ("candidate", "parent", "base", "champion")
CHAMPION = "champion"
"""whose files speak of nobody else: what they say of the data, or of the majority, this run's own say already"""
DATA = "length"
"""subject of what needs no model"""
CUT = "answers_cut"
"""how many of a pair's two answers were cut at the length limit; a row only for pairs where one was"""
_CUT = ("chosen_logp", "rejected_logp")
"""what such a cut changes"""
_KEY = ("subject", "metric", "item")
_COLUMNS = (*_KEY, "cluster", "value", "weight")


class Series(NamedTuple):
    """One metric of one subject, ordered by item; arrays of shape (n,)."""

    items: Texts
    clusters: Texts
    values: Floats
    weights: Floats


class Scores:
    """Everything that was measured: (subject, raw metric) -> series."""

    def __init__(
        self, series: Mapping[tuple[str, str], Series], other_tokens: Collection[str] = (), other_texts: Collection[str] = ()
    ) -> None:
        """Hold `series`; `Scores.read` is the usual way here."""
        self._series = dict(sorted(series.items()))
        self.other_tokens = frozenset(other_tokens)
        """subjects whose tokenizer is another than the candidate's"""
        self.other_texts = frozenset(other_texts) | self.other_tokens
        """subjects whose tokenizer or chat template is another, so that a length limit cuts their texts elsewhere"""

    @classmethod
    def read(
        cls, inputs: Mapping[str, Path], *, other_tokens: Collection[str] = (), other_texts: Collection[str] = ()
    ) -> "Scores":
        """The scores in the artifacts `inputs` (input name -> folder).

        The tokenizers of `other_tokens` are not the candidate's; the tokenizers or chat templates of `other_texts` are not.

        Raises DataError for a file that is not one of scores, a score without a subject, two values for one item, and scores of
        a suite that was not asked and judged alike.
        """
        import pyarrow as pa

        refuse_mixed(inputs)
        tables = [_read(name, folder) for name, folder in sorted(inputs.items())]
        if not tables:
            raise DataError("no scores were given, so nothing can be judged")
        table = pa.concat_tables(tables).group_by(list(_COLUMNS)).aggregate([])  # two files may repeat a score of the data alone
        table = table.sort_by([(name, "ascending") for name in _COLUMNS])
        columns: dict[str, npt.NDArray[Any]] = {name: table[name].to_numpy() for name in _COLUMNS}
        _refuse_doubles(columns)
        edge = _changes(columns, ("subject", "metric"))
        edges = [0, *(np.flatnonzero(edge) + 1), len(table)] if len(table) else []
        series: dict[tuple[str, str], Series] = {}
        for start, end in pairwise(edges):
            part = {name: column[start:end] for name, column in columns.items()}
            key = (str(part["subject"][0]), str(part["metric"][0]))
            series[key] = Series(part["item"], part["cluster"], part["value"], part["weight"])
        return cls(series, other_tokens, other_texts)

    def has(self, subject: str, metric: str) -> bool:
        """Whether `metric` was measured for `subject`."""
        return (subject, metric) in self._series

    def metrics(self) -> list[str]:
        """Names of all raw metrics, sorted."""
        return sorted({metric for _, metric in self._series})

    def aligned(self, *wanted: tuple[str, str]) -> list[Series]:
        """The series of each (subject, metric), item for item; DataError if one is missing or the items differ.

        What is known of the data alone (subject `length`) may cover more items than the first series, and is cut to its items.
        With one of `other_texts` among them, items that were not measured whole of all are left out, see `left_out`.
        """
        found = self._found(*wanted)
        if not self.other_texts.isdisjoint(subject for subject, _ in wanted):
            whole = self._whole(*wanted)
            if not len(whole):
                raise DataError(
                    "no item was measured whole of both the candidate and the other, whose tokenizers or chat templates differ; "
                    "raise evaluation.scores.max_length?"
                )
            found = [_only(series, whole) for series in found]
        first = found[0]
        for i, (subject, metric) in enumerate(wanted[1:], start=1):
            if subject == DATA:
                found[i] = _only(found[i], first.items)
            series = found[i]
            pair = f"{metric} of {subject} and {wanted[0][1]} of {wanted[0][0]}"
            if not np.array_equal(series.items, first.items):
                other = sorted(set(series.items) ^ set(first.items))
                raise DataError(
                    f"{pair} were not measured on the same items: {len(other)} are in one alone, such as {other[0]}; "
                    "were both measured on the same data?"
                )
            if not np.array_equal(series.clusters, first.clusters):
                raise DataError(f"{pair} put the same items in different conversations; measure both afresh?")
        return found

    def left_out(self, *wanted: tuple[str, str]) -> int:
        """How many items `aligned` leaves out of those that were measured: under one of two tokenizers cut, or not usable."""
        if self.other_texts.isdisjoint(subject for subject, _ in wanted):
            return 0
        of_models = [series.items for (subject, _), series in zip(wanted, self._found(*wanted), strict=True) if subject != DATA]
        return len(set().union(*map(set, of_models))) - len(self._whole(*wanted))

    def _found(self, *wanted: tuple[str, str]) -> list[Series]:
        for subject, metric in wanted:
            if (subject, metric) not in self._series:
                there = ", ".join(f"{m} of {s}" for s, m in self._series) or "nothing"
                raise DataError(f"{metric} of {subject} was not measured; the scores hold {there}")
        return [self._series[key] for key in wanted]

    def _whole(self, *wanted: tuple[str, str]) -> Texts:
        """Items that all of `wanted` have, but for pairs that were cut under any of their subjects."""
        of_models = [self._series[subject, metric].items for subject, metric in wanted if subject != DATA]
        items = reduce(np.intersect1d, of_models)
        cut = [self._series[subject, CUT].items for subject, metric in wanted if metric in _CUT and self.has(subject, CUT)]
        return reduce(np.setdiff1d, cut, items)


def subject_of(name: str) -> str:
    """Whose scores the input `name` holds; empty where its rows say so themselves.

    >>> subject_of("scores_candidate"), subject_of("rewards")
    ('candidate', '')
    """
    last = name.rpartition("_")[2]
    return last if last in SUBJECTS else ""


def _only(series: Series, items: Texts) -> Series:
    kept = np.isin(series.items, items)
    return Series(*(column[kept] for column in series))


def _read(name: str, folder: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    types = (pa.string(), pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64())
    path = folder / FILE
    try:
        table = pq.read_table(path, columns=list(_COLUMNS)).cast(pa.schema(zip(_COLUMNS, types, strict=True)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a table of scores ({str(error).splitlines()[0]})") from error
    subject = pc.fill_null(table["subject"], "")
    subject = pc.if_else(pc.equal(subject, ""), subject_of(name), subject)
    table = table.set_column(0, "subject", subject)
    if subject_of(name) == CHAMPION:
        table = table.filter(pc.equal(subject, CHAMPION))
    for column in _COLUMNS:
        if table[column].null_count:
            raise DataError(f"{path}: {table[column].null_count} of {len(table)} rows have no {column}")
    if len(table) and pc.any(pc.equal(table["subject"], "")).as_py():
        raise DataError(f"{path}: rows without a subject, and the input's name {name} does not end in {', '.join(SUBJECTS)}")
    return table


def _refuse_doubles(columns: Mapping[str, npt.NDArray[Any]]) -> None:
    same = np.flatnonzero(~_changes(columns, _KEY))
    if len(same):
        subject, metric, item = (columns[name][same[0]] for name in _KEY)
        raise DataError(f"{metric} of {subject} has more than one value for item {item}; were two measurements mixed?")


def _changes(columns: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Whether each row but the first differs from the row before it in any of `names`."""
    return np.logical_or.reduce([columns[name][1:] != columns[name][:-1] for name in names])
