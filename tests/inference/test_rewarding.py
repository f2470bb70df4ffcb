"""Rewards and metrics of answers: every score under its subject, every text read as in training."""

import pyarrow.parquet as pq
import pytest
import torch

from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import DataError, SpecError
from tasks.core.store import Store
from tasks.generate import ANSWERS, AnswersSpec
from tasks.measure import METRICS, SCORES, MetricsSpec, RewardsSpec, ScoresSpec, measure_answers
from tasks.policy import read_record, write_record
from tasks.tables import write_answers
from tasks.training import rewards
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def judge(bench, tmp_path_factory):
    """A reward model: the tiny policy's body with a random scalar head, written whole."""
    import shutil

    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("judge")
    record = read_record(bench.policy)
    (base,) = bench.models.glob("tiny@*")
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder / "model")
    for file in base.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / "model" / file.name)
    write_record(folder, record.model_copy(update={"task": "reward"}))
    return folder


@pytest.fixture
def replies(bench, tmp_path):
    """Answers of two subjects to the prompts, of different lengths."""
    prompts = sorted(pq.read_table(bench.prompts / "prompts.parquet").to_pylist(), key=lambda row: row["id"])
    folders = {}
    for subject, word in (("candidate", "yes"), ("base", "no no no")):
        folders[subject] = tmp_path / subject
        folders[subject].mkdir()
        write_answers(
            folders[subject],
            [
                {**{name: row[name] for name in ("id", "conversation", "task", "prompt")}}
                | {"answer": f"{word} " * (i % 3), "tokens": 4 * i, "finished": i % 2 == 0}
                for i, row in enumerate(prompts)
            ],
        )
    return folders


def test_every_text_is_scored_at_the_end_of_the_templates_tail(bench, run, out, judge, replies):
    inputs = {"reward_model": judge, "preferences": bench.preferences}
    inputs |= {f"answers_{subject}": folder for subject, folder in replies.items()}
    metrics = rewards.run(RewardsSpec(), inputs, out, run)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    loaded = load(judge, run, task="reward")
    pairs = pq.read_table(bench.preferences / "heldout.parquet").to_pylist()
    wanted = {("reward_model", f"{side}_reward", row["id"]): (row, row[side]) for row in pairs for side in ("chosen", "rejected")}
    for subject, folder in replies.items():
        for row in pq.read_table(folder / "answers.parquet").to_pylist():
            wanted[subject, "reward", row["id"]] = (row, row["answer"])
    found = {(row["subject"], row["metric"], row["item"]): row for row in rows if row["subject"] != "length"}
    assert found.keys() == wanted.keys()
    for key, (row, answer) in wanted.items():
        text = f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            hidden = loaded.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            value = float(loaded.model.score(hidden))
        assert found[key]["value"] == pytest.approx(value, abs=1e-5)
        assert (found[key]["cluster"], found[key]["weight"]) == (row["conversation"], 1.0)
    assert {row["subject"] for row in rows} == {"reward_model", "candidate", "base", "length"}
    assert metrics["pairs_left_out"] == 0


def test_long_pairs_are_left_out_and_answers_never(bench, run, out, judge, replies):
    inputs = {"reward_model": judge, "preferences": bench.preferences, "answers_candidate": replies["candidate"]}
    metrics = rewards.run(RewardsSpec(max_length=2), inputs, out, run)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    assert metrics["pairs_left_out"] == 9
    assert {row["metric"] for row in rows} == {"reward", "chosen_longer"}
    with pytest.raises(DataError, match=r"9 pairs exceed max_length 2\); raise it, or give answers"):
        rewards.run(RewardsSpec(max_length=2), {"reward_model": judge, "preferences": bench.preferences}, out, run)


def test_length_and_end_of_answers_need_no_module(bench, run, out, replies):
    inputs = {"prompts": bench.prompts, "answers_candidate": replies["candidate"], "answers_base": replies["base"]}
    metrics = measure_answers(MetricsSpec(), inputs, out, run)
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    assert rows == [
        {"subject": subject, "metric": metric, "item": f"{i:03}", "cluster": f"c{i // 2}", "value": value(i), "weight": 1.0}
        for subject in ("base", "candidate")
        for metric, value in (("answer_tokens", lambda i: 4.0 * i), ("finished", lambda i: float(i % 2 == 0)))
        for i in range(9)
    ]
    assert metrics["answer_tokens/base"] == 16.0


def test_answers_to_other_prompts_are_refused(bench, run, out, replies, tmp_path):
    row = pq.read_table(replies["base"] / "answers.parquet").to_pylist()[0]
    write_answers(replies["base"], [{**row, "id": "999"}])
    with pytest.raises(DataError, match="answers of base: 999 is not among the prompts"):
        measure_answers(MetricsSpec(), {"prompts": bench.prompts, "answers_base": replies["base"]}, out, run)


def test_an_unknown_module_is_refused_and_a_known_ones_text_is_part_of_the_identity():
    with pytest.raises(SpecError, match="did you mean repetition"):
        MetricsSpec(metrics=("repetitions",))
    spec = MetricsSpec(metrics=("repetition", "exact_match", "repetition"))
    assert spec.metrics == ("exact_match", "repetition")
    assert list(METRICS.texts(spec)) == ["exact_match", "repetition"]


@pytest.mark.slow
def test_the_stages_run_in_children_and_equal_policies_share_their_scores(bench, tmp_path):
    shop = Workshop(Store(tmp_path / "store"), bench.models, Execution(device="cpu", processes=2, threads=1))
    inputs = {"policy": bench.policy, "prompts": bench.prompts}
    answers, _ = shop.build(ANSWERS, AnswersSpec(max_new_tokens=4, limit=5), inputs)
    table = pq.read_table(answers.path / "answers.parquet").to_pylist()
    assert (len(table), answers.metrics["answers"]) == (5, 5)
    spec = MetricsSpec(metrics=("exact_match", "repetition"))
    measured, _ = shop.build(METRICS, spec, {"prompts": bench.prompts, "answers_candidate": answers})
    names = pq.read_table(measured.path / "scores.parquet")["metric"].to_pylist()
    assert names == [name for name in ("answer_tokens", "exact_match", "finished", "repetition") for _ in range(5)]
    scored, built = shop.build(SCORES, ScoresSpec(), {"policy": bench.policy, "texts": bench.texts})
    again, built_again = shop.build(SCORES, ScoresSpec(), {"policy": bench.policy, "texts": bench.texts})
    assert (built, built_again, again.key) == (True, False, scored.key)
    assert set(pq.read_table(scored.path / "scores.parquet")["subject"].to_pylist()) == {""}
