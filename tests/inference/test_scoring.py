"""Scores: the log-probability of exactly the tokens that the model would have to write."""

from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch

from evals.scores import CUT
from tasks.core.errors import DataError
from tasks.measure import ScoresSpec
from tasks.training import score
from tasks.training.data import Encoder
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def measure(bench, run, out, spec=ScoresSpec(), sets=("preferences", "instructions", "texts")):  # noqa: B008  frozen
    inputs = {"policy": bench.policy} | {name: getattr(bench, name) for name in sets}
    metrics = score.run(spec, inputs, out, run)
    return metrics, pq.read_table(out / "scores.parquet").to_pylist()


def by_hand(model, tokenizer, before, counted):
    """Summed log-probability of the text `counted` after `before`, and its tokens; full logits, one text at a time."""
    start = tokenizer.encode(before, add_special_tokens=False)
    rest = tokenizer.encode(counted, add_special_tokens=False)
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([start + rest]), use_cache=False).logits[0].double().log_softmax(-1)
    first = max(len(start), 1)
    ids = (start + rest)[first:]
    return sum(float(logp[first - 1 + i, token]) for i, token in enumerate(ids)), len(ids)


def turn(role, text, end="\n"):
    return f"<|im_start|>{role}\n{text}<|im_end|>{end}"


def test_only_the_answers_tokens_count_stop_token_included(bench, run, out):
    loaded = load(bench.policy, run)
    metrics, rows = measure(bench, run, out, ScoresSpec(limit=2))
    found = {(row["metric"], row["item"]): row for row in rows if not row["subject"]}
    pairs = {row["id"]: row for row in pq.read_table(bench.preferences / "heldout.parquet").to_pylist()}
    talks = {row["id"]: row for row in pq.read_table(bench.instructions / "heldout.parquet").to_pylist()}
    texts = {row["id"]: row for row in pq.read_table(bench.texts / "texts.parquet").to_pylist()}
    assert len(found) == 8
    for name in ("000", "001"):
        prompt = turn("user", pairs[name]["prompt"][0]["content"]) + "<|im_start|>assistant\n"
        for side in ("chosen", "rejected"):
            total, tokens = by_hand(loaded.model, loaded.tokenizer, prompt, pairs[name][side] + "<|im_end|>")
            row = found[f"{side}_logp", name]
            assert (row["value"], row["weight"]) == (pytest.approx(total, abs=1e-4), tokens)
            assert row["cluster"] == pairs[name]["conversation"]
        said = [message["content"] for message in talks[name]["messages"]]
        opening = turn("user", said[0]) + "<|im_start|>assistant\n"
        first = by_hand(loaded.model, loaded.tokenizer, opening, said[1] + "<|im_end|>")
        middle = opening + said[1] + "<|im_end|>\n" + turn("user", said[2]) + "<|im_start|>assistant\n"
        second = by_hand(loaded.model, loaded.tokenizer, middle, said[3] + "<|im_end|>")
        row = found["answer_nll", name]
        assert row["weight"] == first[1] + second[1]
        assert row["value"] == pytest.approx(-(first[0] + second[0]) / row["weight"], abs=1e-5)
        total, tokens = by_hand(loaded.model, loaded.tokenizer, "", texts[name]["text"])
        row = found["text_nll", name]
        assert (row["value"], row["weight"]) == (pytest.approx(-total / tokens, abs=1e-5), tokens)
    both = [found["chosen_logp", name]["value"] for name in ("000", "001")]
    assert metrics["chosen_logp"] == pytest.approx(sum(both) / 2)


def test_scores_are_the_models_own_under_any_adapter_and_batch(adapted, run, monkeypatch):
    encoder = Encoder(adapted.tokenizer)
    draw = torch.Generator().manual_seed(1)
    texts = []
    for length in (5, 17, 9, 9, 30):
        ids = torch.randint(3, 300, (length,), generator=draw).tolist()
        texts.append(score.Text("m", {}, ids, [False] * 3 + [True] * (length - 3), mean=False))
    wanted = []
    for text in texts:
        with torch.no_grad():
            logits = adapted.model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0, -len(text.ids) :]
        logp = logits.double().log_softmax(-1)
        wanted.append(sum(float(logp[t - 1, text.ids[t]]) for t in range(3, len(text.ids))))
    for rows, tokens in ((1, 10), (2, 40), (64, 2048)):
        monkeypatch.setitem(score.ROWS, "cpu", rows)
        monkeypatch.setitem(score.TOKENS, "cpu", tokens)
        found = score.log_probabilities(adapted, encoder, texts, run)
        assert [count for _, count in found] == [2, 14, 6, 6, 27]
        assert [total for total, _ in found] == pytest.approx(wanted, abs=1e-4)


def test_the_head_sees_the_scored_positions_alone(bench, run):
    loaded = load(bench.policy, run)
    seen = []
    loaded.model.lm_head.register_forward_hook(lambda head, given, logits: seen.append(tuple(logits.shape)))
    text = score.Text("m", {}, list(range(3, 53)), [False] * 45 + [True] * 5, mean=False)
    score.log_probabilities(loaded, Encoder(loaded.tokenizer), [text, text._replace(ids=text.ids[::-1])], run)
    assert seen == [(1, 10, len(loaded.tokenizer))]


def test_what_does_not_fit_is_cut_or_counted(bench, run, out):
    _, whole = measure(bench, run, out, sets=("preferences", "instructions"))
    tokens = {(row["metric"], row["item"]): row["weight"] for row in whole}
    encoder = Encoder(load(bench.policy, run).tokenizer)
    pairs = {row["id"]: row for row in pq.read_table(bench.preferences / "heldout.parquet").to_pylist()}
    prompts = {name: len(encoder.prompt(row["prompt"])) for name, row in pairs.items()}
    limit = sorted(prompts.values())[4] + 1
    metrics, rows = measure(bench, run, out, ScoresSpec(max_length=limit), sets=("preferences",))
    filled = sum(length >= limit for length in prompts.values())
    cut = {row["item"]: row["value"] for row in rows if row["metric"] == CUT}
    found = {(row["metric"], row["item"]): row["weight"] for row in rows if not row["subject"] and row["metric"] != CUT}
    equal = metrics["left_out"].get("pairs equal within max_length", 0)
    assert filled
    assert metrics["left_out"]["pairs whose prompt fills max_length"] == filled
    assert len(found) == 2 * (len(pairs) - filled - equal)
    for (metric, item), weight in found.items():
        assert weight == min(tokens[metric, item], limit - prompts[item])
    assert cut  # another tokenizer would cut elsewhere
    assert cut == Counter(item for (metric, item), weight in found.items() if weight < tokens[metric, item])
    assert CUT not in {row["metric"] for row in whole}
    with pytest.raises(DataError, match=r"nothing to score .* raise max_length"):
        measure(bench, run, out, ScoresSpec(max_length=3), sets=("preferences", "instructions"))


def test_the_length_baseline_knows_only_characters(bench, run, out):
    _, rows = measure(bench, run, out, sets=("preferences",))
    pairs = {row["id"]: row for row in pq.read_table(bench.preferences / "heldout.parquet").to_pylist()}
    found = {row["item"]: row["value"] for row in rows if row["subject"] == "length"}
    assert {row["metric"] for row in rows if row["subject"] == "length"} == {"chosen_longer"}
    assert found == {
        name: 1.0 if len(row["chosen"]) > len(row["rejected"]) else 0.5 if len(row["chosen"]) == len(row["rejected"]) else 0.0
        for name, row in pairs.items()
    }


def test_measured_again_the_bytes_are_equal(bench, run, tmp_path):
    payloads = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        measure(bench, run, tmp_path / name)
        payloads.add((tmp_path / name / "scores.parquet").read_bytes())
    assert len(payloads) == 1
