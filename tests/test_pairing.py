"""Pairs of a policy's own answers: who wins by how much, which prompts give none and why, and their curation."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from tasks.core.contract import Run
from tasks.core.errors import DataError
from tasks.pairing import PairingSpec, curate_pairs, pairing
from tasks.rounds import OnlineDpoSpec
from tasks.tables import score, write_answers, write_scores

RUN = Run(Path("unused"), Path("unused"))
WORDS = {"rule": "length", "unit": "words", "at_least": 4}  # a word is worth a quarter
ROUND = OnlineDpoSpec.model_validate({"rewards": [WORDS]})


def answers(folder, said, *, cut=()):
    """Answers to each prompt, `said`: prompt -> texts; `cut`: those that did not end by themselves."""
    folder.mkdir(parents=True)
    write_answers(
        folder,
        [
            {"id": name, "conversation": f"c-{name}", "task": "t", "prompt": [{"role": "user", "content": f"ask {name}"}],
             "answer": text, "tokens": len(text.split()), "finished": text not in cut, "sample": sample}
            for name, texts in said.items() for sample, text in enumerate(texts)
        ],
    )  # fmt: skip
    return folder


def paired(tmp_path, spec, inputs):
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    metrics = pairing(PairingSpec.model_validate(spec), inputs, out, RUN)
    return metrics, pq.read_table(out / "pairs.parquet").to_pylist()


def gist(pairs):
    return [
        (pair["id"], pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["chosen_score"], pair["rejected_score"])
        for pair in pairs
    ]


def test_the_best_answer_stands_against_the_worst_and_every_prompt_is_accounted_for(tmp_path):
    said = {
        "a": ["one two", "one two three four", "one", "one two three"],
        "b": ["red cat", "blue dog"],  # a tie
        "c": ["one two three", "red cat"],  # within the margin
        "d": ["same words", " same words ", ""],  # one answer, and an empty one
        "e": ["x", "x y z"],
    }
    given = answers(tmp_path / "answers", said)
    metrics, pairs = paired(tmp_path, {"rewards": [WORDS], "margin": 0.25}, {"answers": given})
    assert gist(pairs) == [("a", "one two three four", "one", 1.0, 0.25), ("e", "x y z", "x", 0.75, 0.25)]
    assert [(pair["chosen_sample"], pair["rejected_sample"]) for pair in pairs] == [(1, 2), (1, 0)]
    assert {name: pairs[0][name] for name in ("conversation", "task", "prompt")} == {
        "conversation": "c-a", "task": "t", "prompt": [{"role": "user", "content": "ask a"}],
    }  # fmt: skip
    assert metrics == {
        "prompts": 5, "answers": 13, "pairs": 2, "no_pair_tie": 1, "no_pair_margin": 1, "no_pair_alone": 1, "unscored": 0,
        "mean_reward": pytest.approx(27 / 52), "chosen_reward": 0.875, "rejected_reward": 0.25, "finished": 1.0,
        "mean_tokens": pytest.approx(27 / 13), "value_length": pytest.approx(27 / 52),
    }  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert "2 of 5 prompts give a pair" in report
    assert "1 give none: all its answers are worth the same." in report


def test_rewards_add_up_by_weight_and_an_answer_that_was_cut_pays(tmp_path):
    rewards = [WORDS, {"rule": "regex", "pattern": "^red", "weight": 2.0}, {"rule": "regex", "pattern": "dog", "weight": -1.0}]
    given = answers(tmp_path / "answers", {"a": ["red cat", "red dog", "one two three four"]}, cut=["one two three four"])
    metrics, pairs = paired(tmp_path, {"rewards": rewards, "missing_eos_penalty": 0.5}, {"answers": given})
    assert gist(pairs) == [("a", "red cat", "one two three four", 2.5, 0.5)]
    assert metrics["mean_reward"] == pytest.approx((2.5 + 1.5 + 0.5) / 3)
    values = {name: value for name, value in metrics.items() if name.startswith("value_")}
    assert values == {
        "value_length": pytest.approx(2 / 3),
        "value_regex": pytest.approx(2 / 3),
        "value_regex_2": pytest.approx(1 / 3),
    }


def test_equal_answers_count_once_at_their_mean_so_that_a_wavering_judge_makes_no_pair_of_them(tmp_path):
    given = answers(tmp_path / "answers", {"a": ["yes", "yes", "no"], "b": ["yes", "yes", "no"]})
    scores = {"a#0": 1.0, "a#1": 0.0, "a#2": 0.4, "b#0": 0.9, "b#1": 0.1}  # b#2 was given none
    (tmp_path / "judged").mkdir()
    rows = [score("judged", {"id": item, "conversation": "c"}, value, subject="judge") for item, value in scores.items()]
    write_scores(tmp_path / "judged", rows)
    metrics, pairs = paired(
        tmp_path, {"rewards": [{"rule": "judge", "model": "m"}]}, {"answers": given, "scores_judge_0": tmp_path / "judged"}
    )
    assert gist(pairs) == [("a", "yes", "no", 0.5, 0.4)]
    assert (metrics["unscored"], metrics["no_pair_alone"]) == (1, 1)


def test_the_reward_model_counts_in_deviations_from_the_sft_policys_answers(tmp_path):
    given = answers(tmp_path / "answers", {"a": ["low", "high", "sky"]})
    (tmp_path / "scores").mkdir()
    (tmp_path / "clearance").mkdir()
    (tmp_path / "clearance" / "clearance.json").write_text(json.dumps({"mean": 2.0, "std": 4.0, "answers": 64}))
    scored = {"a#0": 0.0, "a#1": 6.0, "a#2": 100.0}
    rows = [score("reward", {"id": item, "conversation": "c"}, value, subject="policy") for item, value in scored.items()]
    write_scores(tmp_path / "scores", rows)
    inputs = {"answers": given, "scores_model": tmp_path / "scores", "clearance": tmp_path / "clearance"}
    _, pairs = paired(tmp_path, {"rewards": [{"rule": "reward_model", "clip": 3.0}]}, inputs)
    assert gist(pairs) == [("a", "sky", "low", 3.0, -0.5)]


def test_exact_numbers_are_compared_with_the_prompts_references(tmp_path):
    said = {"a": ["it is 4", "it is 5"], "b": ["it is 4", "it is 5"]}
    asked = [
        {"id": name, "conversation": "c", "task": "t", "prompt": [{"role": "user", "content": name}], "reference": right}
        for name, right in (("a", "4"), ("b", "5"), ("z", None))  # z was not asked in this round
    ]
    inputs = {"answers": answers(tmp_path / "answers", said), "prompts": tiny.write_rows(tmp_path / "prompts", "prompts", asked)}
    _, pairs = paired(tmp_path, {"rewards": [{"rule": "exact_number"}]}, inputs)
    assert [pair[:3] for pair in gist(pairs)] == [("a", "it is 4", "it is 5"), ("b", "it is 5", "it is 4")]


def test_a_round_without_a_pair_is_one_sentence(tmp_path):
    given = answers(tmp_path / "answers", {"a": ["red", "blue"], "b": ["red", ""], "c": ["a b c", "a b"]})
    with pytest.raises(DataError) as raised:
        paired(tmp_path, {"rewards": [WORDS], "margin": 0.5}, {"answers": given})
    assert str(raised.value) == (
        "none of 3 prompts gives a pair: 1 because it has fewer than two different answers that are not empty; 1 because its "
        "best and worst answer differ by no more than the margin; 1 because all its answers are worth the same; take more "
        "samples or a higher temperature, lower margin, or use a reward that tells these answers apart"
    )


def curated(tmp_path, said, number=1):
    given = answers(tmp_path / "answers", said)
    paired(tmp_path, ROUND.pairing().model_dump(), {"answers": given})
    (tmp_path / "curated").mkdir()
    run = Run(tmp_path / "work", tmp_path)
    metrics = curate_pairs(ROUND.curation(number), {"pairs": tmp_path / "out"}, tmp_path / "curated", run)
    return metrics, {
        name: pq.read_table(tmp_path / "curated" / f"{name}.parquet").to_pylist() for name in ("train", "quarantine")
    }


def test_the_pairs_are_curated_as_any_source_and_no_row_is_lost(tmp_path):
    said = {
        "a": ['{"answer": 1}', "[1, 2] and 3 more"],  # JSON is a text here
        "b": ["Human: hello\n\nAssistant: I am four", "Human: no"],  # so is what looks like a conversation
        "c": ["bad \0 words that are long", "no"],
    }
    metrics, tables = curated(tmp_path, said)
    assert (metrics["rows_in"], metrics["rows_kept"], metrics["rows_quarantined"], metrics["heldout"]) == (3, 2, 1, 0)
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in tables["train"]] == [
        ("[1, 2] and 3 more", '{"answer": 1}', 0.5),
        ("Human: hello\n\nAssistant: I am four", "Human: no", 0.5),
    ]
    assert {row["source"] for row in tables["train"]} == {"round-1"}
    assert [row["reason"] for row in tables["quarantine"]] == ["a NUL character in the text"]


def test_pairs_of_which_the_rules_leave_none_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none of 1 pairs of the policy's answers is usable: .*NUL character"):
        curated(tmp_path, {"a": ["one \0 two", "no"]})


def test_pairs_keep_their_images(tmp_path):
    from PIL import Image

    folder = tmp_path / "answers"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    name = "0" * 64 + ".png"
    shutil.copyfile(tmp_path / "red.png", folder / "images" / name)
    row = {
        "id": "a",
        "conversation": "c",
        "task": None,
        "prompt": [{"role": "user", "content": "<image>what is it?"}],
        "tokens": 1,
    }
    said = [
        {**row, "answer": text, "finished": True, "sample": i, "images": [name]} for i, text in enumerate(("a", "a red square"))
    ]
    write_answers(folder, said)
    paired(tmp_path, {"rewards": [WORDS]}, {"answers": folder})
    (tmp_path / "curated").mkdir()
    curate_pairs(ROUND.curation(1), {"pairs": tmp_path / "out"}, tmp_path / "curated", Run(tmp_path / "work", tmp_path))
    [kept] = pq.read_table(tmp_path / "curated" / "train.parquet").to_pylist()
    assert kept["prompt"] == [{"role": "user", "content": "<image>what is it?"}]
    assert [(tmp_path / "curated" / "images" / name).read_bytes() for name in kept["images"]] == [
        (tmp_path / "red.png").read_bytes()
    ]


def test_equal_answers_and_rewards_are_equal_bytes(tmp_path):
    given = answers(tmp_path / "answers", {"a": ["one", "one two"], "b": ["x y z", "x"]})
    payloads = set()
    for _ in range(2):
        paired(tmp_path, {"rewards": [WORDS]}, {"answers": given})
        payloads.add(tuple(file.read_bytes() for file in sorted((tmp_path / "out").iterdir())))
    assert len(payloads) == 1


def test_rounds_draw_differently_and_ask_other_prompts_in_turn():
    spec = OnlineDpoSpec.model_validate({"rewards": [WORDS], "prompts": 10, "rounds": 3, "seed": 1})
    asked = [spec.sampling(number) for number in (1, 2, 3)]
    assert [(one.limit, one.skip, one.samples) for one in asked] == [(10, 0, 4), (10, 10, 4), (10, 20, 4)]
    other = [spec.model_copy(update={"seed": 2}).sampling(number).seed for number in (1, 2, 3)]
    assert len({one.seed for one in asked} | set(other)) == 6
    everything = ROUND.sampling(2)
    assert (everything.limit, everything.skip) == (None, 0)
