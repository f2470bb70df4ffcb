"""Several answers to a prompt: each with draws of its own, the first one the answer that would be given alone."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import tiny
from pydantic import ValidationError

from tasks.generate import AnswersSpec
from tasks.tables import write_answers
from tasks.training import generate

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ONE = AnswersSpec(max_new_tokens=8, temperature=1.0, seed=3)
FOUR = ONE.model_copy(update={"samples": 4})


def answer(bench, run, out, spec, prompts=None):
    out.mkdir()
    metrics = generate.run(spec, {"policy": bench.policy, "prompts": prompts or bench.prompts}, out, run)
    return metrics, pq.read_table(out / "answers.parquet").to_pylist()


def test_the_first_sample_is_the_answer_given_alone_and_the_others_differ(bench, run, tmp_path):
    _, alone = answer(bench, run, tmp_path / "one", ONE)
    metrics, rows = answer(bench, run, tmp_path / "four", FOUR)
    assert "sample" not in alone[0]
    assert metrics["answers"] == 36
    assert [(row["id"], row["sample"]) for row in rows] == [(f"{i:03}", sample) for i in range(9) for sample in range(4)]
    assert [{name: value for name, value in row.items() if name != "sample"} for row in rows if row["sample"] == 0] == alone
    assert len({row["answer"] for row in rows}) > 30  # a random model says the same twice now and then


def test_a_sample_is_the_same_however_many_are_taken_and_whatever_the_batch(bench, run, tmp_path, monkeypatch):
    _, two = answer(bench, run, tmp_path / "two", ONE.model_copy(update={"samples": 2}))
    monkeypatch.setitem(generate.ROWS, "cpu", 5)
    (tmp_path / "fresh").mkdir()
    _, four = answer(bench, replace(run, work=tmp_path / "fresh"), tmp_path / "four", FOUR)
    assert [row for row in four if row["sample"] < 2] == two


def test_prompts_are_taken_in_turn_and_begin_again_after_the_last(bench, run, tmp_path):
    asked = []
    for number in range(3):
        _, rows = answer(bench, run, tmp_path / str(number), ONE.model_copy(update={"limit": 4, "skip": 4 * number}))
        asked.append([row["id"] for row in rows])
    assert asked == [["000", "001", "002", "003"], ["004", "005", "006", "007"], ["000", "001", "002", "008"]]


def test_the_training_pairs_of_preferences_lend_their_prompts(bench, run, tmp_path):
    said = [("b", "red cat"), ("a", "blue dog"), ("c", "red cat")]  # two pairs ask the same
    rows = [
        {
            "id": name,
            "conversation": name,
            "task": "t",
            "prompt": [{"role": "user", "content": text}],
            "chosen": "x",
            "rejected": "y",
        }
        for name, text in said
    ]
    _, answers = answer(bench, run, tmp_path / "out", ONE, tiny.write_rows(tmp_path / "pairs", "train", rows))
    assert [(row["id"], row["prompt"][0]["content"]) for row in answers] == [("a", "blue dog"), ("b", "red cat")]


def test_answers_without_samples_are_the_bytes_they_were(tmp_path):
    row = {"id": "a", "conversation": "a", "task": None, "prompt": [], "answer": "x", "tokens": 1, "finished": True}
    write_answers(tmp_path, [row])
    names = ["id", "conversation", "task", "prompt", "answer", "tokens", "finished"]
    assert pq.read_table(tmp_path / "answers.parquet").column_names == names


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"samples": 2}, "2 samples at temperature 0 would be one answer 2 times"),
        ({"skip": 3}, "skip 3 without limit passes over nothing"),
        ({"samples": 0}, "greater than 0"),
    ],
)
def test_samples_that_mean_nothing_are_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        AnswersSpec.model_validate(fields)
