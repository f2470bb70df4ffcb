"""Answers: what the policy would say alone, whatever else is in the batch."""

from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from tasks.core.errors import DataError
from tasks.core.launch import MICRO_BATCH
from tasks.generate import AnswersSpec
from tasks.training import generate
from tasks.training.batches import by_length
from tasks.training.data import Encoder
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SAMPLED = AnswersSpec(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=1)


def answer(bench, run, out, spec):
    metrics = generate.run(spec, {"policy": bench.policy, "prompts": bench.prompts}, out, run)
    return metrics, pq.read_table(out / "answers.parquet").to_pylist()


def alone(model, prompt, new_tokens, stops):
    """Greedy tokens without cache, padding or batch: the whole text again for each token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def prompts_of(encoder, lengths):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, len(encoder.tokenizer), (n,), generator=draw).tolist() for n in lengths]


def test_each_answer_is_the_one_the_model_gives_alone(adapted):
    encoder = Encoder(adapted.tokenizer)
    prompts = prompts_of(encoder, [3, 11, 7, 20])
    free = [alone(adapted.model, prompt, 10, stops=()) for prompt in prompts]
    encoder.stops = {free[1][4]}  # the random model would hardly ever stop by itself
    wanted = [alone(adapted.model, prompt, 10, encoder.stops) for prompt in prompts]
    assert len(wanted[1]) <= 5
    assert generate.decode(adapted.model, prompts, encoder, 10, generate._likeliest) == wanted


@pytest.mark.parametrize("spec", [AnswersSpec(max_new_tokens=12), SAMPLED])
def test_the_batch_an_answer_is_written_in_does_not_change_it(spec, bench, run, tmp_path, monkeypatch):
    payloads = set()
    for rows in (1, 4, 32):
        monkeypatch.setitem(generate.ROWS, "cpu", rows)
        (tmp_path / str(rows)).mkdir()
        (run.work / MICRO_BATCH).unlink(missing_ok=True)
        answer(bench, run, tmp_path / str(rows), spec)
        payloads.add((tmp_path / str(rows) / "answers.parquet").read_bytes())
    assert len(payloads) == 1


def test_a_prompt_keeps_its_draws_when_others_come_or_go(bench, run, tmp_path):
    _, everything = answer(bench, run, tmp_path, SAMPLED)
    _, some = answer(bench, run, tmp_path, SAMPLED.model_copy(update={"limit": 4}))
    _, other = answer(bench, run, tmp_path, SAMPLED.model_copy(update={"seed": 2}))
    assert [row["id"] for row in everything] == [f"{i:03}" for i in range(9)]
    assert some == everything[:4]
    assert [row["answer"] for row in other] != [row["answer"] for row in everything]


def test_rows_say_what_was_asked_and_how_it_ended(bench, run, out, monkeypatch):
    said = {"000": [70, 71, 2], "001": [70, 71, 72], "002": [2]}
    numbers = iter(range(9))
    monkeypatch.setattr(
        generate, "decode", lambda model, prompts, *rest: [said.get(f"{next(numbers):03}", [70]) for _ in prompts]
    )
    monkeypatch.setattr(generate, "by_length", lambda lengths, **limits: [[i] for i in range(len(lengths))])
    metrics, rows = answer(bench, run, out, AnswersSpec(max_new_tokens=3, limit=3))
    tokenizer = load(bench.policy, run).tokenizer
    asked = {row["id"]: row for row in pq.read_table(bench.prompts / "prompts.parquet").to_pylist()}
    for row in rows:
        assert {name: row[name] for name in ("conversation", "task", "prompt")} == {
            name: asked[row["id"]][name] for name in ("conversation", "task", "prompt")
        }
    assert [(row["answer"], row["tokens"], row["finished"]) for row in rows] == [
        (tokenizer.decode([70, 71]), 2, True),
        (tokenizer.decode([70, 71, 72]), 3, False),
        ("", 0, True),
    ]
    assert metrics == {"answers": 3, "tokens": 5, "finished": pytest.approx(2 / 3)}


def test_a_prompt_without_room_for_an_answer_is_named(bench, run, out):
    with pytest.raises(DataError, match=r"prompt 000: \d+ tokens and 250 new ones exceed the model's 256 positions"):
        answer(bench, run, out, AnswersSpec(max_new_tokens=250))


def test_draws_follow_the_distribution_and_stay_in_the_nucleus():
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])
    names = [str(i) for i in range(4000)]
    logits = (2 * share.log()).expand(len(names), 4)  # temperature 2 takes the factor back
    for top_p, wanted in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.8, [0.625, 0.375, 0, 0]), (0.01, [1, 0, 0, 0])):
        pick = generate._sampler(AnswersSpec(temperature=2.0, top_p=top_p, max_new_tokens=2), names)
        for step in (0, 1):
            count = Counter(pick(logits, list(range(len(names))), step).tolist())
            for token, probability in enumerate(wanted):
                assert count[token] / len(names) == pytest.approx(probability, abs=4 * 0.5 / len(names) ** 0.5)
                assert bool(count[token]) == (probability > 0)


def test_after_running_out_of_memory_batches_are_smaller_and_answers_equal(bench, run, tmp_path):
    (tmp_path / "a").mkdir()
    answer(bench, run, tmp_path / "a", SAMPLED)
    assert (run.work / MICRO_BATCH).read_text() == "32"
    (run.work / MICRO_BATCH).write_text("2")
    (tmp_path / "b").mkdir()
    seen = []
    answer(bench, replace(run, progress=lambda progress: seen.append(progress.step)), tmp_path / "b", SAMPLED)
    assert seen == [2, 4, 6, 8, 9]
    assert (tmp_path / "a/answers.parquet").read_bytes() == (tmp_path / "b/answers.parquet").read_bytes()


def test_batches_hold_like_lengths_within_both_limits():
    lengths = [9, 1, 5, 5, 2, 30]
    assert list(by_length(lengths, rows=3, tokens=12)) == [[1, 4], [2, 3], [0], [5]]
    assert list(by_length(lengths, rows=2, tokens=99)) == [[1, 4], [2, 3], [0, 5]]
