"""What a policy practises on is read the same from prompts and from preferences."""

import pytest
import tiny

from tasks.core.errors import DataError
from tasks.tables import practice_prompts


def asked(text):
    return [{"role": "user", "content": text}]


def test_prompts_are_read_in_the_order_of_their_ids_with_their_references(tmp_path):
    rows = [
        {"id": name, "conversation": f"c{name}", "task": "t", "prompt": asked(text), "reference": reference, "line": 1}
        for name, text, reference in (("b", "two?", "2"), ("a", "one?", None), ("c", "two?", "2"), ("d", "two?", "zwei"))
    ]
    found = practice_prompts(tiny.write_rows(tmp_path, "prompts", rows))
    assert found == [
        {"id": "a", "conversation": "ca", "task": "t", "prompt": asked("one?"), "reference": None},
        {"id": "b", "conversation": "cb", "task": "t", "prompt": asked("two?"), "reference": "2"},
        {"id": "d", "conversation": "cd", "task": "t", "prompt": asked("two?"), "reference": "zwei"},
    ]


def test_of_preferences_each_distinct_prompt_is_taken_once(tmp_path):
    rows = [
        {"id": str(i), "conversation": "c", "prompt": asked(text), "chosen": f"yes {i}", "rejected": "no"}
        for i, text in enumerate(("one?", "two?", "one?"))
    ]
    found = practice_prompts(tiny.write_rows(tmp_path, "train", rows))
    assert [(row["id"], row["prompt"], row["reference"], row["task"]) for row in found] == [
        ("0", asked("one?"), None, None),
        ("1", asked("two?"), None, None),
    ]


def test_a_table_without_prompts_is_refused(tmp_path):
    tiny.write_rows(tmp_path, "train", [{"id": "0", "messages": asked("one?")}])
    with pytest.raises(DataError, match="no column `prompt`"):
        practice_prompts(tmp_path)
    with pytest.raises(DataError, match=r"prompts\.parquet: no such file"):
        practice_prompts(tmp_path / "nothing")
