"""Every layout that people use means the same conversation, pair or prompt."""

import json

import pytest
from curating import curate, jsonl

from tasks.core.errors import DataError, SpecError

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LONG = [{"role": "system", "content": "s"}, {"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, *TALK]


def said(role, content, *, old):
    return {"from": role, "value": content} if old else {"role": role, "content": content}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(("asks", "answers"), [
    ("human", "gpt"), ("user", "assistant"), ("User", "ASSISTANT"), ("prompter", "chatgpt"), ("human", "bing"), ("human", "bard"),
    ("user", "model"), ("tool", "function_call"), ("observation", "assistant"),
])  # fmt: skip
def test_every_spelling_of_the_roles(asks, answers, column, old):
    from tasks.reading.schemas import Schemas
    from tasks.reading.spec import SourceSpec

    row = {column: [said("system", "s", old=old), said(asks, " q ", old=old), said(answers, "a\n", old=old)]}
    _, items = Schemas("instructions", SourceSpec(name="x")).read(row)
    assert items[0].messages == [LONG[0], *TALK]


@pytest.mark.parametrize("row", [
    {"instruction": "q", "output": "a", "history": [["q0", "a0"]], "system": "s"},
    {"query": "q", "response": "a", "history": [["q0", "a0"]], "system": "s"},
    {"system": "s", "conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": "a"}]},
    {"messages": LONG},
    {"messages": json.dumps(LONG)},
    {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in LONG]},
    {"prompt": LONG[:-1], "completion": LONG[-1:]},
    {"prompt": LONG[:-1], "answer": "a"},
    {"conversations": LONG[1:], "tools": "s", "system": ""},
])  # fmt: skip
def test_instructions_in_every_layout_are_one_conversation(tmp_path, row):
    kept = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", [row])).kept
    expected = [{"role": "system", "content": "Tools:\ns"}, *LONG[1:]] if "tools" in row else LONG
    assert [one["messages"] for one in kept] == [expected]


def test_alpaca_puts_the_input_under_the_instruction(tmp_path):
    rows = [{"instruction": "i", "input": "x", "output": "a"}, {"instruction": "i", "input": "", "output": "a"}]
    kept = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows)).kept
    assert [row["messages"][0]["content"] for row in kept] == ["i\n\nx", "i"]


CHOSEN, REJECTED = {"role": "assistant", "content": "c"}, {"role": "assistant", "content": "r"}
ASKED = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("row", [
    {"prompt": "q", "chosen": "c", "rejected": "r"},
    {"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]},
    {"prompt": "q", "chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
    {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
    {"chosen_messages": [*ASKED, CHOSEN], "rejected_messages": [*ASKED, REJECTED]},
    {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " c", "rejected": " r"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "c"},
     "rejected": {"from": "gpt", "value": "r"}},
    {"instruction": "q", "input": "", "chosen": "c", "rejected": "r"},
    {"query": "q", "response": "c", "rejected_response": "r"},
    {"messages": [*ASKED, CHOSEN], "rejected_response": "r"},
    {"messages": [*ASKED, CHOSEN], "rejected_messages": [*ASKED, REJECTED]},
    {"question": "q", "response_j": "c", "response_k": "r"},
    {"prompt": "<extra_id_0>System\n\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n",
     "chosen_response": "c\n<extra_id_1>", "rejected_response": "r\n<extra_id_1>"},
    {"input": {"messages": ASKED}, "preferred_output": [CHOSEN], "non_preferred_output": [REJECTED]},
    {"input": "q", "output_1": "r", "output_2": "c", "label": 2},
    {"prompt": "q", "response_0": "c", "response_1": "r", "better_response_id": 0},
    {"conversation_a": [*ASKED, CHOSEN], "conversation_b": [*ASKED, REJECTED], "winner": "model_a"},
    {"prompt": "q", "completions": ["r", "c", "m"], "scores": [1, 3, 2]},
    {"prompt": "q", "answers": [{"answer": "r", "rank": 3}, {"answer": "c", "rank": 1}, {"answer": "m", "rank": 2}]},
])  # fmt: skip
def test_preferences_in_every_layout_are_one_pair(tmp_path, row):
    kept = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [row])).kept
    assert [(one["prompt"], one["chosen"], one["rejected"]) for one in kept] == [(ASKED, "c", "r")]


def test_an_answer_that_is_json_stays_a_text(tmp_path):
    row = {"prompt": "[1, 2]", "chosen": '{"a": [1]}', "rejected": '["b"]'}
    kept = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [row])).kept[0]
    assert (kept["prompt"][0]["content"], kept["chosen"], kept["rejected"]) == ("[1, 2]", '{"a": [1]}', '["b"]')


def test_scored_answers_make_the_pairs_that_the_rule_asks_for(tmp_path):
    row = {"prompt": "q", "completions": ["one", "two", "five", "none"], "scores": [1, 2, 5, None]}
    path = jsonl(tmp_path / "x.jsonl", [row])
    every = curate(tmp_path, "preferences", path, sources=[{"pairs": {"take": "all", "min_margin": 2}}])
    assert [(r["chosen"], r["rejected"], r["margin"]) for r in every.kept] == [("five", "one", 4.0), ("five", "two", 3.0)]
    assert (every.metrics["rows_kept"], every.metrics["train"] + every.metrics["heldout"]) == (1, 2)
    best = curate(tmp_path, "preferences", path)
    assert [(r["chosen"], r["rejected"]) for r in best.kept] == [("five", "one")]


def test_answers_that_tie_or_lack_scores_make_no_pair(tmp_path):
    rows = [
        {"prompt": "p", "completions": ["a", "b"], "scores": [2, 1]},
        {"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]},
        {"prompt": "r", "completions": ["a", "b"]},
        {"prompt": "s", "completions": ["a", "b"], "scores": [1]},
        {"prompt": "t", "response_a": "x", "response_b": "y", "winner": "tie"},
        {"prompt": "u", "response_a": "x", "response_b": "y", "winner": "somebody"},
    ]
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows))
    assert done.reasons == [
        (2, "all answers tie"),
        (3, "fewer than two scored answers"),
        (4, "answers and scores differ in number: 2 and 1"),
        (5, "tie"),
        (6, "unknown winner: somebody"),
    ]


def test_unpaired_labels_pair_up_in_order_and_the_rest_is_quarantined(tmp_path):
    rows = [{"prompt": p, "completion": c, "label": label} for p, c, label in [
        ("p", "good1", True), ("p", "bad1", False), ("p", "good2", True), ("q", "good", True), ("r", "bad", False)]]  # fmt: skip
    rows.append({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "bad2"}], "label": False})
    rows.append({"prompt": "p", "completion": "x", "label": "perhaps"})
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows))
    assert [(r["line"], r["chosen"], r["rejected"]) for r in done.kept] == [(1, "good1", "bad1"), (3, "good2", "bad2")]
    assert done.metrics["rows_kept"] == 4 and done.reasons == [
        (4, "no disliked answer left for the prompt"),
        (5, "no liked answer left for the prompt"),
        (7, "the label is not yes or no: perhaps"),
    ]


def test_prompts_come_from_every_kind_of_row_and_keep_a_reference(tmp_path):
    rows = ["bare", {"prompt": "p"}, {"question": "q", "answer": "a"}, {"messages": LONG}, {"turns": ["t", "u"],
    "reference": ["r", "s"]},
            {"prompt": "w", "chosen": "c", "rejected": "d"}, {"messages": ASKED, "ground_truth": 7}]  # fmt: skip
    kept = curate(tmp_path, "prompts", jsonl(tmp_path / "x.jsonl", [json.dumps(row) for row in rows])).kept
    assert [(r["prompt"][-1]["content"], r["reference"]) for r in kept] == [
        ("bare", None), ("p", None), ("q", "a"), ("q", "a"), ("t", "r"), ("w", None)]  # fmt: skip
    assert kept[3]["prompt"] == LONG[:-1]


def test_texts_are_rows_or_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\nstill one\n\n\n two \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three\nfour\n", encoding="utf-8")
    done = curate(
        tmp_path, "texts", tmp_path / "a.txt", tmp_path / "b.txt", jsonl(tmp_path / "c.jsonl", [{"text": " five\n"}, {"x": 1}])
    )
    assert [(r["source"], r["line"], r["text"]) for r in done.kept] == [
        ("a.txt", 1, "one\nstill one"), ("a.txt", 5, " two "), ("b.txt", 1, "three"), ("b.txt", 2, "four"),
        ("c.jsonl", 1, " five"),
    ]  # fmt: skip
    assert done.reasons == [(2, "no text: found the columns x")]


def test_a_schema_and_columns_can_be_told(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"raw_text": "q", "good": "c", "bad": "r", "text": "t"}])
    columns = {"prompt": "raw_text", "chosen": "good", "rejected": "bad"}
    assert curate(tmp_path, "preferences", path, sources=[{"columns": columns}]).metrics["rows_kept"] == 1
    with pytest.raises(DataError, match="no column nope"):
        curate(tmp_path, "preferences", path, sources=[{"columns": {"prompt": "nope"}}])
    with pytest.raises(SpecError, match="hold no texts; use auto or one of strings, text"):
        curate(tmp_path, "texts", path, sources=[{"schema": "pairs"}])


def test_rows_under_a_key_are_found(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}))
    assert [row["text"] for row in curate(tmp_path, "texts", path, sources=[{"rows": "data"}]).kept] == ["a", "b"]
    with pytest.raises(DataError, match="there is no list under 'items'"):
        curate(tmp_path, "texts", path, sources=[{"rows": "items"}])


def test_sound_and_video_are_refused_by_name(tmp_path):
    rows = [{"messages": TALK}, {"messages": TALK, "videos": ["a.mp4"]},
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}, TALK[1]]},
            {"query": "What is <img src='x'>?", "response": "A tag."}]  # fmt: skip
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows))
    assert done.reasons == [(line, "images, sound and video are not supported here") for line in (2, 3)]


def test_a_disliked_answer_is_nothing_to_imitate(tmp_path):
    rows = [{"messages": TALK, "label": False}, {"prompt": "x", "completion": "y", "label": True}]
    assert curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows)).reasons == [(1, "a disliked answer")]
