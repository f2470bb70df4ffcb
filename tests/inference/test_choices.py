"""Multiple choice by likelihood: equal to the model's own numbers, whatever the batch; what cannot be asked is refused."""

import json
import math

import pyarrow.parquet as pq
import pytest
import tiny
import torch

from evals import suite
from tasks.core.errors import DataError
from tasks.suites import ChoicesSpec, QuestionsSpec, questions
from tasks.training import choices, score
from tasks.training.models import load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROWS = [
    {"query": f"{asked}, therefore", "choices": [f"{one}.", two, f"{three} {one}"], "gold": i % 3}
    for i, (asked, one, two, three) in enumerate(zip(*(tiny.sentences(5, seed) for seed in (1, 2, 3, 4)), strict=True))
]


def asked(folder, run, rows=ROWS, name="copa"):
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / f"prompts-{name}"
    out.mkdir()
    questions(QuestionsSpec(asked=suite.suite(name).asked()), {"data": folder / "data.jsonl"}, out, run)
    return out


def measured(bench, prompts, out, run, name="copa", **spec):
    inputs = {"policy": bench.policy, "prompts": prompts}
    metrics = choices.run(ChoicesSpec(suite=name, **spec), inputs, out, run)
    return metrics, {(row["metric"], row["item"]): row["value"] for row in pq.read_table(out / "scores.parquet").to_pylist()}


@torch.no_grad()
def by_hand(loaded, before, text):
    """Summed log-probability of the tokens of `text` after `before`, by one plain forward pass."""
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    logp = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(loaded.tokenizer(before, add_special_tokens=False)["input_ids"])
    assert loaded.tokenizer.decode(ids[:start]) == before  # the cut is one between tokens
    return sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))


def test_the_likelihood_of_a_text_that_goes_on_is_the_models_own(bench, run, out, tmp_path):
    metrics, found = measured(bench, asked(tmp_path, run), out, run)
    loaded = load(bench.policy, run)
    right = []
    for i, row in enumerate(ROWS, 1):
        sums = [by_hand(loaded, row["query"], f"{row['query']} {choice}") for choice in row["choices"]]
        by_length = [total / len(choice) for total, choice in zip(sums, row["choices"], strict=True)]
        name, gold = f"{i:06d}", row["gold"]
        right.append(float(sums.index(max(sums)) == gold))
        assert found["copa.accuracy", name] == right[-1]
        assert found["copa.accuracy_normalised", name] == float(by_length.index(max(by_length)) == gold)
        share = math.exp(sums[gold]) / sum(map(math.exp, sums))
        assert found["copa.gold_probability", name] == pytest.approx(share, rel=1e-3)
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert (metrics["questions"], metrics["chance"]) == (5, pytest.approx(1 / 3))
    made = json.loads((out / "suite.json").read_text())
    assert (made["suite"], made["version"], made["settings"]) == ("copa", 1, {"asks": "text", "max_length": 2048})


def test_as_a_chat_a_choice_is_the_assistants_turn_with_its_stop_token(bench, run, out, tmp_path, monkeypatch):
    told = suite.suite("copa").model_copy(update={"asks": "chat"})
    monkeypatch.setattr("evals.suite.suite", lambda name: told)
    _, found = measured(bench, asked(tmp_path, run), out, run)
    loaded = load(bench.policy, run)
    for i, row in enumerate(ROWS, 1):
        before = f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"
        sums = [by_hand(loaded, before, f"{before}{choice}<|im_end|>") for choice in row["choices"]]
        share = math.exp(sums[row["gold"]]) / sum(map(math.exp, sums))
        assert found["copa.gold_probability", f"{i:06d}"] == pytest.approx(share, rel=1e-3)


def test_the_batch_does_not_matter(bench, run, tmp_path, monkeypatch):
    prompts, seen = asked(tmp_path, run), []
    for rows in (1, 3, 64):
        monkeypatch.setitem(score.ROWS, "cpu", rows)
        (tmp_path / str(rows)).mkdir()
        seen.append(measured(bench, prompts, tmp_path / str(rows), run)[1])
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)
    assert seen[0] == pytest.approx(seen[2], rel=1e-4)


def test_a_question_that_does_not_fit_is_refused(bench, run, out, tmp_path):
    with pytest.raises(DataError, match=r"suite copa: 00000\d has \d+ tokens, more than max_length 8"):
        measured(bench, asked(tmp_path, run), out, run, max_length=8)


def test_prompts_without_choices_are_refused(bench, run, out):
    with pytest.raises(DataError, match="suite copa: its prompts have no choices; is this an artifact of another suite"):
        measured(bench, bench.prompts, out, run)


def test_no_likelihood_is_an_error():
    with pytest.raises(DataError, match="no finite likelihood; did its training diverge"):
        choices.judged(["a", "b"], 0, [float("nan"), -1.0])
