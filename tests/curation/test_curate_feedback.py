"""Liked and disliked answers: from labels as they are, from pairs taken apart; nothing is lost, and nothing is both."""

import pytest
from curating import SHARED, curate, jsonl, pair

from tasks.core.errors import DataError
from tasks.core.files import file_digest, tree


def said(prompt="Why?", completion="Because.", label=True, **more):
    return {"prompt": prompt, "completion": completion, "label": label, **more}


def told(done):
    return [(row["line"], row["prompt"][-1]["content"], row["answer"], row["liked"]) for row in done.kept]


def test_labels_are_rows_and_pairs_are_two(tmp_path):
    rows = [
        said("a", "x"), said("a", "y", False), said("a", "z", "0"),
        pair("b", "good", "bad"),
        {"prompt": "c", "response_0": "n", "response_1": "m", "better_response_id": 1},
        {"prompt": "d", "completions": ["2nd", "1st", "3rd"], "scores": [2, 3, 1]},
        {"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "f"}], "kto_tag": False},
    ]  # fmt: skip
    done = curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", rows))
    assert told(done) == [
        (1, "a", "x", True), (2, "a", "y", False), (3, "a", "z", False), (4, "b", "good", True), (4, "b", "bad", False),
        (5, "c", "m", True), (5, "c", "n", False), (6, "d", "1st", True), (6, "d", "3rd", False), (7, "e", "f", False),
    ]  # fmt: skip
    assert (done.metrics["rows_in"], done.metrics["rows_kept"], done.metrics["rows_quarantined"]) == (7, 7, 0)
    assert sum(done.metrics[name] for name in ("train", "heldout")) == 10
    counts = {row["label"]: row["train"] + row["heldout"] for row in done.report["labels"]}
    assert counts == {"liked": 4, "disliked": 6}
    assert set(done.kept[0]) == {"id", "conversation", "task", "prompt", "answer", "liked", "source", "line"}


def test_all_scored_answers_may_make_pairs_but_only_the_ends_are_feedback(tmp_path):
    rows = [{"prompt": "d", "completions": ["2nd", "1st", "3rd"], "scores": [2, 3, 1]}]
    done = curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", rows), sources=[{"pairs": {"take": "all"}}])
    assert told(done) == [(1, "d", "1st", True), (1, "d", "3rd", False)]


def test_each_rule_refuses_what_it_names(tmp_path):
    long = "x" * 60
    rows = [
        said("one"), said("one"), said("ONE ", "because.  "), said("two", "A"), said("two", "a ", False), said("two", "other"),
        pair("three", "same", "same"), said("four", ""), said(" ", "x"), said("five" * 40), said("six", long),
        pair("seven", "x", "y", chosen_score=1, rejected_score=1), pair("eight", "x", "y", chosen_score=1, rejected_score=2),
        said([{"role": "user", "content": "p"}, {"role": "user", "content": "q"}]), said("nine", "x", "perhaps"),
        said("ten", "x", None), {"prompt": "x", "completions": ["a", "b"], "scores": [1, 1]}, pair("two", "x", "OTHER"),
    ]  # fmt: skip
    done = curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", rows), max_prompt_chars=100, max_answer_chars=50)
    assert told(done) == [(1, "one", "Because.", True), (18, "two", "x", True)]
    assert done.reasons == [
        (2, "exact duplicate: x.jsonl:1"), (3, "normalised duplicate: x.jsonl:1"), (4, "contradicting feedback: x.jsonl:5"),
        (5, "contradicting feedback: x.jsonl:4"), (6, "contradicting feedback: x.jsonl:18"), (7, "identical sides"),
        (8, "empty answer"), (9, "empty prompt"), (10, "over-long prompt"), (11, "over-long answer"), (12, "tie"),
        (13, "the rejected answer scores higher"), (14, "roles out of order"), (15, "the label is not yes or no: perhaps"),
        (16, "no answer that is liked or not: found the columns completion, prompt"), (17, "all answers tie"),
    ]  # fmt: skip
    assert [(row["line"], row["reason"]) for row in done.rows("dropped")] == [(18, "contradicting feedback: x.jsonl:6")]


def test_what_truncation_would_make_equal_contradicts_itself(tmp_path):
    rows = [said("p", "x" * 30), said("p", "x" * 31, False), said("p", "y" * 30)]
    done = curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", rows), max_answer_chars=20, over_long="keep")
    assert told(done) == [(3, "p", "y" * 30, True)]
    assert done.reasons == [(1, "contradicting feedback: x.jsonl:2"), (2, "contradicting feedback: x.jsonl:1")]


def test_each_side_of_a_pair_may_have_its_own_prompt(tmp_path):
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in (("p", "x"), ("q", "y"))]
    done = curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", [{"chosen": turns[0], "rejected": turns[1]}]))
    assert told(done) == [(1, "p", "x", True), (1, "q", "y", False)]


def test_answers_to_one_prompt_stay_on_one_side_and_the_bytes_do_not_depend_on_threads(tmp_path):
    rows = [said(f"question {i % 200}", f"answer {i}", i % 3 == 0) for i in range(600)]
    path = jsonl(tmp_path / "x.jsonl", rows)
    one, four = (curate(tmp_path, "feedback", path, heldout=0.25, threads=n) for n in (1, 4))
    sides = [{row["prompt"][0]["content"] for row in one.rows(name)} for name in ("train", "heldout")]
    assert not sides[0] & sides[1] and 25 <= len(sides[1]) <= 75  # 50 of 200 are expected
    assert {file.name: file_digest(file) for file in tree(one.out)} == {file.name: file_digest(file) for file in tree(four.out)}
    liked = [row["liked"] for row in one.rows("train")]
    assert (one.metrics["liked_to_train_on"], one.metrics["disliked_to_train_on"]) == (sum(liked), len(liked) - sum(liked))


def test_rows_without_a_judgement_are_no_feedback(tmp_path):
    with pytest.raises(DataError, match="none of 1 records is usable as feedback: no answer that is liked or not"):
        curate(tmp_path, "feedback", jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public test data is not beside the checkout")
@pytest.mark.parametrize(
    ("name", "kept", "refused", "liked", "disliked"),
    [
        ("llamafactory/kto_en_demo.json", 291, 9, 146, 145),  # 9 of more than 8000 characters, 4 of them liked
        ("llamafactory/dpo_en_demo.json", 289, 10, 289, 289),  # 6 over-long, 4 twice word for word
        ("rasbt/instruction-data-with-preference.json", 1094, 6, 1094, 1094),
    ],
)
def test_public_files(tmp_path, name, kept, refused, liked, disliked):
    done = curate(tmp_path, "feedback", SHARED / name)
    assert (done.metrics["rows_kept"], done.metrics["rows_quarantined"]) == (kept, refused)
    found = [row["liked"] for row in done.kept]
    assert (sum(found), len(found) - sum(found)) == (liked, disliked)
