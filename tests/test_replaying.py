"""Which rows of earlier tasks are shown again: the share that was asked for, none twice while others wait, nothing held out."""

from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_rows

from tasks.continual import ReplaySpec, Rows, choose, replay
from tasks.core.contract import Run
from tasks.core.errors import DataError


def task(name, rows, heldout=4):
    return Rows([f"{name}{i}" for i in range(rows)], frozenset(f"{name}-held{i}" for i in range(heldout)))


@settings(deadline=None)
@given(st.lists(st.integers(3, 40), min_size=2, max_size=6), st.floats(0.05, 0.6), st.integers(0, 5))
def test_no_row_comes_again_before_all_others_of_its_task_did(sizes, share, seed):
    tasks = [task(chr(97 + i), size) for i, size in enumerate(sizes)]
    worn = [Counter() for _ in tasks]
    for last in range(2, len(tasks) + 1):
        picks = choose(tasks[:last], share, seed)
        own, replayed = sizes[last - 1], sum(map(len, picks))
        assert abs(replayed - own * share / (1 - share)) <= 1
        assert max(map(len, picks)) - min(map(len, picks)) <= 1
        for j, rows in enumerate(picks):
            worn[j].update(rows)
    for counter, size in zip(worn, sizes, strict=True):
        times = [counter[row] for row in range(size)]
        assert max(times) - min(times) <= 1


def test_the_seed_decides_and_a_later_task_changes_nothing_before_it():
    tasks = [task("a", 30), task("b", 30), task("c", 30)]
    assert choose(tasks[:2], 0.3, 0) == choose(tasks[:2], 0.3, 0) != choose(tasks[:2], 0.3, 1)
    first, second = choose(tasks[:2], 0.3, 0)[0], choose(tasks, 0.3, 0)[0]
    assert not set(first) & set(second)


def test_what_any_task_holds_out_or_the_last_one_has_itself_never_comes():
    first = Rows([f"x{i}" for i in range(10)], frozenset())
    second = Rows([*(f"y{i}" for i in range(20)), "x0"], frozenset({"x1", "x2"}))
    picks = choose([first, second], 0.5, 0)[0]
    assert {first.train[row] for row in picks} == {f"x{i}" for i in range(3, 10)}
    barred = Rows([f"y{i}" for i in range(5)], frozenset(first.train))
    with pytest.raises(DataError, match="task 2 may be shown no row of task 1"):
        choose([first, barred], 0.5, 0)


def test_the_mixture_holds_both_and_the_held_out_part_is_the_tasks_own(tmp_path):
    folders = {}
    for name in ("a", "b"):
        for split, span in (("train", range(9)), ("heldout", range(9, 12))):
            rows = [
                {"id": f"{i:02}", "conversation": f"{name}{i}", "messages": [{"role": "user", "content": name}]} for i in span
            ]
            folders[name] = write_rows(tmp_path / name, split, rows)
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"data": folders["b"], "earlier_0": folders["a"]}
    said = replay(ReplaySpec(share=0.25), inputs, out, Run(tmp_path, tmp_path))
    assert said == {"train": 12, "own": 9, "replayed": 3, "repeated": 0}
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert Counter(row["messages"][0]["content"] for row in rows) == {"b": 9, "a": 3}
    assert len({row["id"] for row in rows}) == 12
    assert (out / "heldout.parquet").read_bytes() == (folders["b"] / "heldout.parquet").read_bytes()
