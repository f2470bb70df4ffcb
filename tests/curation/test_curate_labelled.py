"""Labelled rows: three forms out of many layouts, every record kept or refused with its reason, labels on both sides counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curating import SHARED, curate, jsonl

from tasks.core.errors import DataError


def told(row):
    """What a kept row says, without where it came from."""
    return {
        name: value
        for name, value in row.items()
        if value is not None and name not in ("id", "conversation", "form", "source", "line")
    }


def one(tmp_path, row, **fields):
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", [row]), **fields)
    return [(line["form"], told(line)) for line in found.kept]


CONTEXT = " 𝄞 北京 is  old "


@pytest.mark.parametrize(
    ("row", "form", "said"),
    [
        ({"text": " hi ", "label": "a"}, "classes", {"text": "hi", "label": "a"}),
        ({"sentence": "hi", "label": 3}, "classes", {"text": "hi", "label": "3"}),
        ({"review": "hi", "sentiment": True}, "classes", {"text": "hi", "label": "true"}),
        ({"text": "hi", "label": 2.0}, "classes", {"text": "hi", "label": "2"}),
        ({"premise": "p", "hypothesis": "h", "label": "no"}, "classes", {"text": "p", "pair": "h", "label": "no"}),
        ({"tokens": ["a ", "b"], "ner_tags": ["O", "B-X"]}, "tags", {"tokens": ["a ", "b"], "tags": ["O", "B-X"]}),
        ({"words": "a b", "tags": "O B-X"}, "tags", {"tokens": ["a", "b"], "tags": ["O", "B-X"]}),
        ({"tokens": '["a", "b"]', "tags": "[1, 0]"}, "tags", {"tokens": ["a", "b"], "tags": ["1", "0"]}),
        (
            {"question": "q", "context": CONTEXT, "answers": {"text": ["北京", "old"], "answer_start": [3, 10]}},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": [{"text": "北京", "start": 3}, {"text": "old", "start": 10}]},
        ),
        (
            {"question": "q", "context": CONTEXT, "answers": [{"text": "is", "answer_start": 6}]},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": [{"text": "is", "start": 6}]},
        ),
        (
            {"question": "q", "context": CONTEXT, "answer": "is"},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": [{"text": "is", "start": 6}]},
        ),
        (
            {"question": "q", "context": CONTEXT, "answer": "is", "start": "6"},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": [{"text": "is", "start": 6}]},
        ),
        (
            {"question": "q", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": []},
        ),
        (
            {"question": "q", "context": CONTEXT, "is_impossible": True},
            "questions",
            {"question": "q", "context": CONTEXT, "answers": []},
        ),
    ],
)
def test_each_layout_is_one_of_three_forms(tmp_path, row, form, said):
    assert one(tmp_path, row) == [(form, said)]


def test_nested_articles_give_a_row_for_each_question(tmp_path):
    asked = [{"question": "What?", "answers": [{"text": "Rome", "answer_start": 0}]}, {"question": "Why?", "answers": []}]
    whole = {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": "Rome is old.", "qas": asked}]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(whole))
    found = curate(tmp_path, "labelled", path, sources=[{"rows": "data"}])
    assert [(row["question"], row["answers"]) for row in found.kept] == [("What?", [{"text": "Rome", "start": 0}]), ("Why?", [])]
    assert len({row["conversation"] for row in found.kept}) == 1  # one context, one side


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " ", "label": "a"}, "empty text"),
        ({"text": "x", "pair": "", "label": "a"}, "empty text: the second"),
        ({"text": "x", "label": " "}, "no label"),
        (
            {"text": "x", "label": None},
            "no text with a label, tokens with tags, or question with a context: found the columns text",
        ),
        ({"text": "x", "label": ["a", "b"]}, "unknown type of label: list"),
        ({"text": "x", "label": 1.5}, "unknown type of label: float"),
        ({"tokens": [], "tags": []}, "empty text"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "not as many tags as tokens: 2 tags, 1 tokens"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "empty token"),
        ({"tokens": ["a"], "tags": [""]}, "empty tag"),
        ({"tokens": ["a"], "tags": ["B X"]}, "white space in a tag"),
        ({"tokens": [1], "tags": ["O"]}, "a token is not text"),
        ({"question": "q", "context": " ", "answers": []}, "empty text"),
        ({"question": " ", "context": "c", "answers": []}, "empty question"),
        ({"question": "q", "context": "c"}, "no answers"),
        ({"question": "q", "context": "c", "answer": ""}, "empty answer"),
        ({"question": "q", "context": "c", "answer": "d"}, "answer not found in context"),
        ({"question": "q", "context": "cc", "answers": [{"text": "c", "answer_start": 2}]}, "answer not found in context"),
        ({"question": "q", "context": "cc", "answers": [{"text": "c", "answer_start": -1}]}, "answer not found in context"),
        ({"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0, 1]}}, "2 starts for 1 answers"),
        (
            {"question": "q", "context": "c", "answers": [{"text": "c", "answer_start": 0.5}]},
            "the start of an answer is not a whole number: 0.5",
        ),
        ({"text": "xx", "label": "a"}, "over-long text"),
    ],
)  # fmt: skip
def test_what_teaches_nothing_is_refused_with_the_reason(tmp_path, row, reason):
    fine = {"text": "y", "label": "b"}
    limit = {"max_text_chars": 2} if reason == "over-long text" else {}
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", [fine, row]), **limit)
    assert found.reasons == [(2, reason)]
    assert (found.metrics["rows_in"], found.metrics["rows_kept"]) == (2, 1)


def test_equal_rows_stay_once_and_contradicting_ones_all_go(tmp_path):
    rows = [
        {"text": "Same", "label": "a"}, {"text": "Same", "label": "a"}, {"text": "same", "label": "a"},
        {"text": "Two  faces", "label": "a"}, {"text": "two faces", "label": "b"},
        {"tokens": ["Apple"], "tags": ["B-ORG"]}, {"tokens": ["apple"], "tags": ["O"]},
        {"tokens": ["x"], "tags": ["O"]}, {"tokens": ["x"], "tags": ["B-X"]},
        {"question": "q", "context": "a b", "answer": "a"}, {"question": "q", "context": "a b", "answer": "b"},
        {"question": "r", "context": "a b", "answer": "b"},
    ]  # fmt: skip
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", rows))
    assert found.reasons == [
        (2, "exact duplicate: a.jsonl:1"), (4, "contradicting label: a.jsonl:5"), (5, "contradicting label: a.jsonl:4"),
        (8, "contradicting label: a.jsonl:9"), (9, "contradicting label: a.jsonl:8"),
        (10, "contradicting label: a.jsonl:11"), (11, "contradicting label: a.jsonl:10"),
    ]  # fmt: skip
    loose = curate(tmp_path, "labelled", tmp_path / "a.jsonl", duplicates="normalised")
    assert (3, "normalised duplicate: a.jsonl:1") in loose.reasons


def test_a_text_with_thousands_of_contradictions_is_judged_at_once(tmp_path):
    rows = [{"text": "again", "label": str(i % 2)} for i in range(4000)]
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", [*rows, {"text": "fine", "label": "0"}]))
    assert found.metrics["rows_quarantined"] == 4000


def test_numbers_get_the_names_that_the_plan_gives(tmp_path):
    rows = [{"text": "x", "label": 1}, {"text": "y", "label": "other"}, {"text": "z", "label": 9}]
    rows += [{"tokens": ["a", "b"], "ner_tags": [0, 2]}]
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", rows), names=["O", "B-A", "I-A"])
    assert [row["label"] or row["tags"] for row in found.kept] == ["B-A", "other", "9", ["O", "I-A"]]


def test_columns_are_mapped_and_tables_of_every_format_read_alike(tmp_path):
    rows = [{"body": f"text {i}", "what": i % 2, "id": i} for i in range(8)]
    mapping = {"columns": {"text": "body", "label": "what"}}
    (tmp_path / "a.csv").write_text("body,what,id\n" + "".join(f"{r['body']},{r['what']},{r['id']}\n" for r in rows))
    (tmp_path / "a.tsv").write_text("body\twhat\tid\n" + "".join(f"{r['body']}\t{r['what']}\t{r['id']}\n" for r in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    jsonl(tmp_path / "a.jsonl", rows)
    kept = [
        sorted((told(row) for row in curate(tmp_path, "labelled", tmp_path / f"a.{kind}", sources=[mapping]).kept), key=str)
        for kind in ("csv", "tsv", "json", "parquet", "jsonl")
    ]
    assert kept == [[{"text": f"text {i}", "label": str(i % 2)} for i in range(8)]] * 5


def test_rows_of_one_group_are_on_one_side_and_the_labels_of_both_are_counted(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "conversation": f"g{i // 4}"} for i in range(80)]
    found = curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", rows), heldout=0.4)
    sides = [{row["conversation"] for row in found.rows(name)} for name in ("train", "heldout")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 20
    counted = {name: [row["label"] for row in found.rows(name)] for name in ("train", "heldout")}
    assert found.report["labels"] == [
        {"label": label, "train": counted["train"].count(label), "heldout": counted["heldout"].count(label)} for label in "ab"
    ]
    assert "## Labels" in (found.out / "report.md").read_text()


def test_no_labelled_row_at_all_is_an_error_that_says_what_there_is(tmp_path):
    with pytest.raises(DataError, match="none of 1 records is usable as labelled"):
        curate(tmp_path, "labelled", jsonl(tmp_path / "a.jsonl", [{"text": "only text"}]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public test data is not beside the checkout")
def test_real_labels_are_all_accounted_for(tmp_path):
    source = {"columns": {"text": "TEXT", "label": "label"}}
    found = curate(tmp_path, "labelled", SHARED / "cold" / "dev.csv", sources=[source])
    metrics = found.metrics
    assert metrics["rows_in"] == 6431 == metrics["rows_kept"] + metrics["rows_quarantined"]
    assert [reason.partition(":")[0] for _, reason in found.reasons] == ["exact duplicate"]
    assert metrics["train"] + metrics["heldout"] == metrics["rows_kept"]
    assert 0.18 < metrics["heldout"] / metrics["rows_kept"] < 0.22
    assert {row["label"] for row in found.kept} == {"0", "1"}
