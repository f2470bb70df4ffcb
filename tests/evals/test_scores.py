"""Scores: who they are of, aligned item by item, and refused where they cannot be."""

import numpy as np
import pytest
from scoring import row, rows, write

from evals.scores import Scores
from tasks.core.errors import DataError


def test_the_inputs_name_says_whose_scores_they_are_unless_the_rows_do(tmp_path):
    shared = write(tmp_path / "a", [*rows("reward", [3, 1, 2]), *rows("chosen_longer", [1, 0], subject="length")])
    pairs = write(tmp_path / "b", rows("chosen_reward", [5, 6], subject="reward_model"))
    scores = Scores.read({"scores_candidate": shared, "scores_base": shared, "rewards": pairs})
    assert [scores.has(who, "reward") for who in ("candidate", "parent", "base")] == [True, False, True]
    assert scores.metrics() == ["chosen_longer", "chosen_reward", "reward"]
    mine, base = scores.aligned(("candidate", "reward"), ("base", "reward"))
    assert mine.items.tolist() == base.items.tolist() == ["i000", "i001", "i002"]
    assert mine.values.tolist() == [3, 1, 2]
    assert mine.values.dtype == np.float64


def test_a_champions_file_speaks_of_nobody_else(tmp_path):
    mine = write(tmp_path / "a", [*rows("accuracy", [1, 0]), *rows("accuracy", [1, 1], subject="majority")])
    theirs = write(tmp_path / "b", [*rows("accuracy", [0, 0]), *rows("accuracy", [0, 1], subject="majority")])
    rewards = write(tmp_path / "c", [*rows("reward", [5, 6], subject="champion"), *rows("chosen_longer", [0], subject="length")])
    scores = Scores.read({"scores_candidate": mine, "scores_champion": theirs, "rewards_champion": rewards})
    assert [one.values.tolist() for one in scores.aligned(("champion", "accuracy"), ("majority", "accuracy"))] == [[0, 0], [1, 1]]
    assert (scores.has("champion", "reward"), scores.has("length", "chosen_longer")) == (True, False)


def test_rows_in_any_order_and_over_several_files_are_aligned(tmp_path):
    one = write(tmp_path / "a", list(reversed(rows("reward", [1, 2, 3]))))
    two = write(tmp_path / "b", [*rows("reward", [4, 5, 6])[1:], *rows("reward", [4, 5, 6])[:1]])
    mine, other = Scores.read({"scores_candidate": one, "scores_parent": two}).aligned(
        ("candidate", "reward"), ("parent", "reward")
    )
    assert (mine.values.tolist(), other.values.tolist()) == ([1, 2, 3], [4, 5, 6])


def test_scores_of_the_data_alone_are_cut_to_the_items_at_hand(tmp_path):
    folder = write(
        tmp_path / "a",
        [*rows("chosen_reward", [1, 2], subject="reward_model"), *rows("chosen_longer", [1, 0, 1, 1], subject="length")],
    )
    rewards, longer = Scores.read({"rewards": folder}).aligned(("reward_model", "chosen_reward"), ("length", "chosen_longer"))
    assert rewards.items.tolist() == longer.items.tolist() == ["i000", "i001"]
    assert longer.values.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("scores", rows("reward", [1]), "rows without a subject"),
        ("scores", [row("reward", "a", 1, subject=None)], "rows without a subject"),
        ("scores_candidate", [row("reward", "a", None)], "1 of 1 rows have no value"),
        (
            "scores_candidate",
            [row("reward", "a", 1), row("reward", "a", 2)],
            "reward of candidate has more than one value for item a",
        ),
    ],
)
def test_unusable_rows_are_an_error(tmp_path, name, table, said):
    with pytest.raises(DataError, match=said):
        Scores.read({name: write(tmp_path / "a", table)})


def test_what_was_not_measured_says_what_was(tmp_path):
    scores = Scores.read({"scores_candidate": write(tmp_path / "a", rows("reward", [1]))})
    with pytest.raises(DataError, match=r"reward of parent was not measured; the scores hold reward of candidate$"):
        scores.aligned(("candidate", "reward"), ("parent", "reward"))
    empty = Scores.read({"scores_candidate": write(tmp_path / "b", [])})
    with pytest.raises(DataError, match="the scores hold nothing"):
        empty.aligned(("candidate", "reward"))
    with pytest.raises(DataError, match="no scores were given"):
        Scores.read({})


def test_unpaired_items_or_conversations_are_an_error(tmp_path):
    one = write(tmp_path / "a", rows("reward", [1, 2, 3]))
    fewer = write(tmp_path / "b", rows("reward", [1, 2]))
    moved = write(tmp_path / "c", rows("reward", [1, 2, 3], cluster="c"))
    wanted = ("candidate", "reward"), ("parent", "reward")
    with pytest.raises(DataError, match="not measured on the same items: 1 are in one alone, such as i002"):
        Scores.read({"scores_candidate": one, "scores_parent": fewer}).aligned(*wanted)
    with pytest.raises(DataError, match="same items in different conversations"):
        Scores.read({"scores_candidate": one, "scores_parent": moved}).aligned(*wanted)


def test_a_file_that_holds_no_scores_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"scores\.parquet: not a table of scores"):
        Scores.read({"scores_candidate": tmp_path})
    (tmp_path / "scores.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not a table of scores"):
        Scores.read({"scores_candidate": tmp_path})
