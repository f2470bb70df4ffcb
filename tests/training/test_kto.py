"""KTO: starts at its reference, does not depend on how a batch is cut, resumes to the same bytes, learns what was planted."""

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import write_rows

from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.files import remove, tree
from tasks.preference import KtoSpec
from tasks.training import kto
from tasks.training.data import Encoder, encode_answers
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def spec(method="lora", **more):
    method = tiny.METHOD[method] if isinstance(method, str) else method
    return KtoSpec.model_validate({"method": method, "max_steps": 4, "global_batch": 8, "learning_rate": 1e-3, **more})


def weights(out):
    return load_file(next(out.glob("adapters/*/adapter_model.safetensors")))


def distance(one, two):
    a, b = weights(one), weights(two)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


@pytest.fixture(scope="module")
def feedback(shop, tmp_path_factory):
    """Three liked answers to two disliked ones, none of them to the same prompt."""
    root, words = tmp_path_factory.mktemp("feedback"), tiny.sentences(80)
    rows = [
        {
            "id": f"{i:03}",
            "prompt": [{"role": "user", "content": words[i]}],
            "answer": ("yes " if i % 5 < 3 else "no ") + words[i + 1],
            "liked": i % 5 < 3,
        }
        for i in range(60)
    ]
    return write_rows(root, "train", rows)


@pytest.fixture(scope="module")
def learn(shop, tmp_path_factory):
    def run(given, data, policy=None, work=None, **execution):
        out = tmp_path_factory.mktemp("out")
        here = Run(work or tmp_path_factory.mktemp("work"), shop.models, Execution(device="cpu", **execution))
        return out, kto.run(given, {"policy": policy or shop.policy, "data": data}, out, here)

    return run


@pytest.mark.parametrize("method", ["lora", "full", "qlora", "ia3", "prompt_tuning"])
def test_it_starts_at_its_reference_and_the_loss_falls(shop, learn, sft_policies, feedback, method):
    rate = 1e-2 if method in ("ia3", "prompt_tuning") else 3e-3
    _, metrics = learn(spec(method, max_steps=8, learning_rate=rate), feedback, sft_policies(method))
    assert metrics["first_step_log_ratio"] < 1e-3
    assert metrics["first_loss"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["last_loss"] < metrics["first_loss"]
    assert (metrics["rows"], metrics["liked"], metrics["disliked"], metrics["rows_dropped"]) == (60, 36, 24, {})


@pytest.mark.parametrize("data", ["feedback", "preferences"])
def test_eight_rows_at_once_equal_one_row_eight_times(shop, learn, sft_policies, feedback, data):
    given = feedback if data == "feedback" else shop.preferences
    done = {size: learn(spec(), given, sft_policies("lora"), micro_batch=size) for size in (8, 1)}
    assert (done[1][1]["micro_batch"], done[1][1]["accumulation"]) == (1, 8)
    assert distance(done[8][0], done[1][0]) < 2e-5  # a fiftieth of one step of 1e-3
    curves = {size: (out / "training.json") for size, (out, _) in done.items()}
    for one, eight in zip(*(_curve(curves[size]) for size in (1, 8)), strict=True):
        assert {name: pytest.approx(value, abs=2e-4, rel=2e-3) for name, value in eight.items()} == one


def _curve(path):
    import json

    kept = ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins")
    return [{name: row[name] for name in kept if name in row} for row in json.loads(path.read_text())]


def test_the_first_steps_are_the_papers_loss(shop, learn, feedback, tmp_path):
    """Weights move by less than rounding, so every step's loss is that of eq. 7 at the start: lambda (1 - sigmoid(0))."""
    given = spec(learning_rate=1e-12, desirable_weight=1.0, undesirable_weight=3.0, max_steps=3, warmup=0)
    out, _ = learn(given, feedback)
    rows, _ = _rows(shop, feedback, tmp_path)
    order = kto.schedule(
        [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows],
        global_batch=8, epochs=1, max_steps=3, seed=0,
    )  # fmt: skip
    for step, row in enumerate(_curve(out / "training.json")):
        liked = sum(rows[i]["label"] for i in order[step * 8 : step * 8 + 8])
        assert row["loss"] == pytest.approx((0.5 * liked + 1.5 * (8 - liked)) / 8, abs=1e-4)


def _rows(shop, data, tmp_path):
    encoder = Encoder(load(shop.policy, Run(tmp_path, shop.models, Execution(device="cpu"))).tokenizer)
    return encode_answers(encoder, kto.read_rows(data, "train"), max_length=1024).rows, encoder


def test_a_later_loss_is_the_papers_worked_out_slowly(shop, learn, feedback, tmp_path):
    """One step of training, then eq. 7 with the saved weights: KL over the batch's mismatched texts, one text at a time."""
    out, _ = learn(spec("full", max_steps=2, warmup=0, learning_rate=3e-3, schedule="constant"), feedback)
    one, _ = learn(spec("full", max_steps=1, warmup=0, learning_rate=3e-3, schedule="constant"), feedback)
    rows, _ = _rows(shop, feedback, tmp_path)
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    order = kto.schedule(lengths, global_batch=8, epochs=1, max_steps=2, seed=0)[8:]
    now, start = (load(policy, Run(tmp_path, shop.models, Execution(device="cpu"))).model for policy in (one, shop.policy))

    def ratio(prompt, answer):
        found = []
        for model in (now, start):
            with torch.no_grad():
                logp = model(torch.tensor([prompt + answer])).logits[0, :-1].log_softmax(-1)
            found.append(sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
        return float(found[0] - found[1])

    batch = [rows[i] for i in order]
    kl = max(0, sum(ratio(row["prompt_ids"], batch[i - 1]["completion_ids"]) for i, row in enumerate(batch)) / 8)
    signs = [1 if row["label"] else -1 for row in batch]
    margins = [
        0.1 * sign * (ratio(row["prompt_ids"], row["completion_ids"]) - kl) for sign, row in zip(signs, batch, strict=True)
    ]
    expected = sum(1 - torch.sigmoid(torch.tensor(margin)).item() for margin in margins) / 8
    second = _curve(out / "training.json")[1]
    assert kl > 0.01  # so that it counts
    assert second["kl"] == pytest.approx(kl, abs=1e-3)
    assert second["loss"] == pytest.approx(expected, abs=1e-5)


def test_prompts_are_matched_with_the_answer_to_another_prompt_where_there_is_one():
    assert kto.mismatched([[1], [2], [3], [4], [5], [6]], 3) == [2, 0, 1, 5, 3, 4]
    assert kto.mismatched([[1], [1], [2], [2], [7], [7], [7], [7]], 4) == [2, 3, 0, 1, 7, 4, 5, 6]


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_resumed_run_equals_the_unbroken_one(learn, sft_policies, feedback, tmp_path, method):
    whole, _ = learn(spec(method), feedback, sft_policies(method), work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = learn(spec(method), feedback, sft_policies(method), work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert payload(resumed) == payload(whole)


def test_a_reference_that_is_not_the_start_is_an_error(learn, sft_policies, feedback, tmp_path):
    import json

    learn(spec(), feedback, sft_policies("lora"), work=tmp_path)
    remove(tmp_path / "checkpoints")
    known = json.loads((tmp_path / kto.REFERENCE).read_text())
    (tmp_path / kto.REFERENCE).write_text(json.dumps([value - 1 for value in known]))
    with pytest.raises(AlignError, match="KTO did not start at its reference: log-ratio 1 nats"):
        learn(spec(), feedback, sft_policies("lora"), work=tmp_path)


def test_a_batch_of_one_and_feedback_of_one_kind_are_refused(learn, feedback, tmp_path):
    with pytest.raises(ValueError, match="global_batch 1 leaves KTO no answer to another prompt"):
        spec(global_batch=1)
    rows = [{**row, "liked": True} for row in kto.read_rows(feedback, "train")]
    with pytest.raises(DataError, match="none of 60 answers is disliked, and KTO learns from both"):
        learn(spec(), write_rows(tmp_path, "train", rows))


def test_answers_that_are_both_liked_and_not_within_max_length_are_left_out(shop, feedback, tmp_path):
    _, encoder = _rows(shop, feedback, tmp_path)
    said = [{"prompt": [{"role": "user", "content": "cat"}], "answer": "red " * n, "liked": n == 9} for n in (9, 10)]
    prompt = len(encoder.prompt(said[0]["prompt"]))
    encoded = encode_answers(encoder, said, max_length=prompt + 4)
    assert (encoded.rows, encoded.dropped) == ([], {"liked and disliked alike within max_length": 2})


@pytest.mark.slow
def test_two_processes_equal_one(shop, learn, sft_policies, feedback, tmp_path):
    from tasks.core.launch import run_child

    alone, one = learn(spec(), feedback, sft_policies("lora"))
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    run = Run(work, shop.models, Execution(device="cpu", processes=2, threads=1))
    two = run_child("kto", spec(), {"policy": sft_policies("lora"), "data": feedback}, out, run)
    assert (two["processes"], two["micro_batch"], two["accumulation"]) == (2, 4, 1)
    assert distance(alone, out) < 2e-5
    assert two["last_loss"] == pytest.approx(one["last_loss"], abs=1e-5)


def test_it_learns_what_was_liked(shop, learn, sft_policies, feedback, tmp_path):
    """`yes` was liked and `no` was not: the first word to new prompts moves that way, and without updates it stays."""
    shares = {}
    for rate in (1e-12, 3e-3):
        out, _ = learn(spec("full", max_steps=60, learning_rate=rate), feedback, sft_policies("lora"))
        shares[rate] = _margin(shop, out, tmp_path)
    assert shares[3e-3] > shares[1e-12] + 2


def _margin(shop, policy, tmp_path):
    """Mean log-odds, in nats, of `yes` over `no` as the first word."""
    loaded = load(policy, Run(tmp_path, shop.models, Execution(device="cpu")))
    encoder = Encoder(loaded.tokenizer)
    yes, no = (encoder.ids(word)[0] for word in ("yes", "no"))
    found = []
    for words in tiny.sentences(120)[70:80]:
        with torch.no_grad():
            ids = torch.tensor([encoder.prompt([{"role": "user", "content": words}])])
            last = loaded.model(ids).logits[0, -1].log_softmax(-1)
        found.append(float(last[yes] - last[no]))
    return sum(found) / len(found)


def test_methods_that_could_not_start_there_are_refused(learn, sft_policies, feedback):
    with pytest.raises(SpecError, match="merge the policy first"):
        learn(spec("lora"), feedback, sft_policies("qlora"))
