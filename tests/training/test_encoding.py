from collections import Counter

import pytest
from transformers import AutoTokenizer

from tasks.core.errors import DataError
from tasks.training.data import IGNORED, Encoder, encode_instructions, encode_pairs, encode_texts, schedule, scored_ids

SYSTEM = {"role": "system", "content": "please"}


def say(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


@pytest.fixture(scope="module")
def encoder(shop):
    return Encoder(AutoTokenizer.from_pretrained(shop.root / "source"))


def spans(encoder, row):
    """The trained stretches of a row as text."""
    texts, now = [], []
    for token, label in [*zip(row["input_ids"], row["labels"], strict=True), (0, IGNORED)]:
        if label != IGNORED:
            assert label == token
            now.append(token)
        elif now:
            texts.append(encoder.tokenizer.decode(now))
            now = []
    return texts


def test_trains_on_every_assistant_turn_with_its_stop_token_and_on_nothing_else(encoder):
    messages = [SYSTEM, *say("red?", "blue one", "and?", "two cats")]
    row = encode_instructions(encoder, [{"messages": messages}], max_length=200).rows[0]
    assert encoder.tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>system\nplease<|im_end|>\n<|im_start|>user\nred?<|im_end|>\n<|im_start|>assistant\nblue one<|im_end|>\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\ntwo cats<|im_end|>\n"
    )
    assert spans(encoder, row) == ["blue one<|im_end|>", "two cats<|im_end|>"]


@pytest.mark.parametrize("answer", ["\n\nspaced out ", "四个季节、春夏秋冬。", "", "def f():\n    return 1\n"])
def test_the_prompt_has_the_tokens_it_has_in_use(encoder, answer):
    messages = say("what is red?", answer)
    row = encode_instructions(encoder, [{"messages": messages}], max_length=400).rows[0]
    prompt = encoder.prompt(messages[:1])
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert row["labels"][len(prompt)] != IGNORED
    assert spans(encoder, row) == [answer + "<|im_end|>"]


def test_counts_what_is_cut_and_what_is_left_out(encoder):
    short, long, hopeless = say("a", "b"), say("a", "one two three " * 20), say("one two three " * 20, "b")
    result = encode_instructions(encoder, [{"messages": m} for m in (short, long, hopeless)], max_length=30)
    assert (result.total, len(result.rows), result.truncated) == (3, 2, 1)
    assert result.dropped == Counter({"prompts longer than max_length": 1})
    assert max(len(row["input_ids"]) for row in result.rows) == 30
    result.check(0.34, "train")
    with pytest.raises(DataError, match=r"1 of 3 rows would be left out \(1 prompts longer.*dropped_budget 0.3"):
        result.check(0.3, "train")


def test_no_row_at_all_is_an_error(encoder):
    with pytest.raises(DataError, match="none of 0 rows"):
        encode_instructions(encoder, [], max_length=30).check(1.0, "train")


def test_pairs_share_the_prompt_and_end_in_the_stop_token(encoder):
    row = {"prompt": [SYSTEM, *say("red?")], "chosen": "yes", "rejected": "no maybe"}
    encoded = encode_pairs(encoder, [row], max_length=200).rows[0]
    assert encoded["prompt_ids"] == encoder.prompt(row["prompt"])
    assert encoder.tokenizer.decode(encoded["chosen_ids"]) == "yes<|im_end|>"
    assert encoder.tokenizer.decode(encoded["rejected_ids"]) == "no maybe<|im_end|>"


def test_pairs_that_are_equal_within_max_length_are_counted_out(encoder):
    row = {"prompt": say("red?"), "chosen": "one two three cat", "rejected": "one two three dog"}
    room = len(encoder.prompt(row["prompt"]))
    assert encode_pairs(encoder, [row], max_length=room + 3).dropped == Counter({"pairs equal within max_length": 1})
    assert encode_pairs(encoder, [row], max_length=room).dropped == Counter({"prompts longer than max_length": 1})
    assert encode_pairs(encoder, [row], max_length=200).truncated == 0


def test_scored_texts_end_in_the_templates_tail_never_in_padding(encoder):
    row = {"prompt": say("red?"), "chosen": "yes", "rejected": "no"}
    encoded = encode_texts(encoder, [row], max_length=200).rows[0]
    assert encoder.tokenizer.decode(encoded["chosen_ids"]).endswith("yes<|im_end|>\n")
    assert encoded["chosen_ids"] == scored_ids(encoder, row["prompt"], "yes")
    assert encoder.pad not in (encoded["chosen_ids"][-1], encoder.tokenizer.eos_token_id)
    assert encode_texts(encoder, [row], max_length=10).dropped == Counter({"pairs longer than max_length": 1})


def test_a_template_whose_turns_never_stop_is_refused(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder.tokenizer.name_or_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(DataError, match="without a stop token"):
        encode_instructions(Encoder(tokenizer), [{"messages": say("a", "b")}], max_length=50)


def test_a_template_that_rewrites_history_is_refused(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages | length }}" + str(encoder.tokenizer.chat_template)
    with pytest.raises(DataError, match="renders a conversation and its beginning differently"):
        encode_instructions(Encoder(tokenizer), [{"messages": say("a", "b", "c", "d")}], max_length=50)


def test_a_schedule_shuffles_each_pass_and_sorts_within_a_batch():
    lengths = [3, 9, 1, 7, 5, 2]
    order = schedule(lengths, global_batch=4, epochs=2, max_steps=None, seed=0)
    assert Counter(order) == Counter({i: 2 for i in range(6)})
    for i in range(0, 12, 4):
        assert [lengths[row] for row in order[i : i + 4]] == sorted((lengths[row] for row in order[i : i + 4]), reverse=True)
    assert order != schedule(lengths, global_batch=4, epochs=2, max_steps=None, seed=1)
    assert len(schedule(lengths, global_batch=4, epochs=1, max_steps=None, seed=0)) == 8  # the last batch is filled up
    assert len(schedule(lengths, global_batch=4, epochs=1, max_steps=5, seed=0)) == 20
