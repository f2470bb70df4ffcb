"""The sample data keep what their README promises."""

import json
import re
from collections import Counter
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "datasets" / "samples"


def rows(name):
    return [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_counts_ids_kinds_and_languages():
    counts = {name: len(rows(name)) for name in ("instructions", "preferences", "prompts", "text")}
    assert counts == {"instructions": 400, "preferences": 500, "prompts": 120, "text": 80}
    for name in counts:
        assert len({row["id"] for row in rows(name)}) == counts[name]
    for name in ("instructions", "preferences", "prompts"):
        assert len({row["task"] for row in rows(name)}) == 12
        assert 0.05 <= sum(row["task"] == "chinese" for row in rows(name)) / counts[name] <= 0.15


def test_length_alone_does_not_give_the_better_answer_away():
    pairs = rows("preferences")
    assert all(len(row["chosen"]) != len(row["rejected"]) for row in pairs)
    assert 0.45 <= sum(len(row["chosen"]) > len(row["rejected"]) for row in pairs) / len(pairs) <= 0.55


def test_no_prompt_is_there_twice_nor_in_what_is_trained_on():
    asked = [plain(row["messages"][-2]["content"]) for row in rows("instructions") if len(row["messages"]) == 2]
    preferred = [plain(row["prompt"]) for row in rows("preferences")]
    measured = [plain(row["prompt"]) for row in rows("prompts")]
    for prompts in (asked, preferred, measured):
        assert len(set(prompts)) == len(prompts)
    assert not set(measured) & (set(asked) | set(preferred))


def test_no_preferred_answer_opens_with_filler():
    opening = re.compile(r"(sure|great question|certainly|of course|as an ai|well,|absolutely)\b", re.IGNORECASE)
    assert [row["id"] for row in rows("preferences") if opening.match(row["chosen"])] == []
    assert sum(bool(opening.match(row["rejected"])) for row in rows("preferences")) > 50


def test_continual_tasks_are_there_once_and_their_answers_are_right():
    counts = {"orders": 64, "tickets": 60, "units": 64}
    for name, count in counts.items():
        found = rows(f"continual/{name}")
        assert len({row["id"] for row in found}) == len({plain(row["messages"][0]["content"]) for row in found}) == count
    for row in rows("continual/orders"):
        asked, order = row["messages"][0]["content"].lower(), json.loads(row["messages"][1]["content"])
        assert re.search(rf"table {order['table']}\b", asked)
        named = dict(zip(["one", "two", "three", "four", "five"], range(1, 6), strict=True))
        said = {thing: named[number] for number, thing in re.findall(rf"\b({'|'.join(named)}) ([a-z]+?)(?:e?s)?\b", asked)}
        assert {thing[:4]: number for thing, number in said.items()} == {t[:4]: n for t, n in order["items"].items()}
    for row in rows("continual/units"):
        sums = re.findall(r"(\d+) ([x+]) (\d+) = (\d+)", row["messages"][1]["content"])
        assert sums
        assert all(int(c) == (int(a) * int(b) if sign == "x" else int(a) + int(b)) for a, sign, b, c in sums)


def test_labelled_messages_are_balanced_differ_and_keep_what_is_alike_together():
    labelled = rows("labelled")
    assert len(labelled) == len({row["id"] for row in labelled}) == len({plain(row["text"]) for row in labelled}) == 200
    assert Counter(row["label"] for row in labelled) == dict.fromkeys(("delivery", "refund", "fault", "praise"), 50)
    assert sum(bool(re.search(r"[\u4e00-\u9fff]", row["text"])) for row in labelled) == 24
    by_group = {row["conversation"]: row["label"] for row in labelled}
    assert all(by_group[row["conversation"]] == row["label"] for row in labelled)
    assert len(by_group) == 4 * (22 + 6)
