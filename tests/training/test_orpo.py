"""ORPO: the loss of the paper, on whole batches, resumed to the same bytes, learning what was planted."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from tasks.core.contract import Execution, Run
from tasks.core.files import tree
from tasks.preference import OrpoSpec
from tasks.training.data import Encoder, encode_pairs, read_rows, schedule
from tasks.training.models import load
from tasks.training.orpo import orpo_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def spec(method="lora", **more):
    return OrpoSpec.model_validate(
        {"method": tiny.METHOD[method], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-3, **more}
    )


def weights(out):
    return load_file(next(out.glob("adapters/*/adapter_model.safetensors")))


def distance(one, two):
    a, b = weights(one), weights(two)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


def slowly(chosen, rejected, beta):
    """Equations 6 and 7 word for word, a pair at a time."""
    terms = []
    for good, bad in zip(chosen, rejected, strict=True):
        p, q = math.exp(good), math.exp(bad)
        ratio = (p / (1 - p)) / (q / (1 - q))
        terms.append(-good - beta * math.log(1 / (1 + math.exp(-math.log(ratio)))))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_loss_is_the_papers(beta):
    chosen, rejected = [-0.1, -1.0, -3.0, -8.0], [-2.0, -1.0, -0.05, -9.0]
    found = orpo_loss(torch.tensor(chosen), torch.tensor(rejected), beta=beta)
    assert float(found.loss) == pytest.approx(slowly(chosen, rejected, beta), abs=1e-6)
    assert float(found.imitation) == pytest.approx(12.1 / 4, abs=1e-6)


def test_the_odds_ratio_is_that_of_trl_as_long_as_it_has_one():
    theirs = pytest.importorskip("trl.experimental.orpo", reason="this TRL has no ORPO any more").ORPOTrainer
    chosen, rejected = torch.tensor([-0.1, -1.0, -3.0]), torch.tensor([-2.0, -1.0, -0.05])
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    losses = theirs.odds_ratio_loss(trainer, chosen, rejected)[0]  # the negative of what it is called
    ours = orpo_loss(chosen, rejected, beta=0.3)
    assert float(ours.loss - ours.imitation) == pytest.approx(-float(losses.mean()), abs=1e-6)


def test_a_certain_answer_has_a_finite_loss_and_gradient():
    chosen = torch.tensor([0.0, -1e-9], requires_grad=True)
    orpo_loss(chosen, torch.tensor([-1.0, 0.0]), beta=0.1).loss.backward()
    assert bool(torch.isfinite(chosen.grad).all())


@pytest.mark.parametrize("method", ["lora", "full", "qlora", "ia3", "prompt_tuning", "prefix_tuning"])
def test_the_loss_falls(train, sft_policies, method):
    rate = {"ia3": 1e-1, "prompt_tuning": 1e-2, "prefix_tuning": 1e-2}.get(method, 3e-3)
    out, metrics = train("orpo", spec(method, max_steps=8, learning_rate=rate), sft_policies(method))
    assert metrics["last_loss"] < metrics["first_loss"]
    assert {"loss", "nll", "odds_ratio", "accuracy", "grad_norm"} <= json.loads((out / "training.json").read_text())[0].keys()


def test_the_first_loss_is_that_of_the_parent_one_text_at_a_time(shop, train, sft_policies, tmp_path):
    out, _ = train("orpo", spec(max_steps=1, beta=0.7), sft_policies("lora"))
    loaded = load(sft_policies("lora"), Run(tmp_path, shop.models, Execution(device="cpu")))
    rows = encode_pairs(Encoder(loaded.tokenizer), read_rows(shop.preferences, "train"), max_length=1024).rows
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    order = schedule(lengths, global_batch=8, epochs=1, max_steps=1, seed=0)

    def mean(prompt, answer):
        with torch.no_grad():
            logp = loaded.model(torch.tensor([prompt + answer])).logits[0, :-1].log_softmax(-1)
        return sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)

    chosen, rejected = ([mean(rows[i]["prompt_ids"], rows[i][f"{side}_ids"]) for i in order] for side in ("chosen", "rejected"))
    row = json.loads((out / "training.json").read_text())[0]
    assert row["loss"] == pytest.approx(slowly(chosen, rejected, 0.7), abs=1e-5)
    assert row["accuracy"] == sum(a > b for a, b in zip(chosen, rejected, strict=True)) / 8


def test_eight_pairs_at_once_equal_one_pair_eight_times(train, sft_policies):
    done = {size: train("orpo", spec(), sft_policies("lora"), micro_batch=size) for size in (8, 1)}
    assert (done[1][1]["micro_batch"], done[1][1]["accumulation"]) == (1, 8)
    assert distance(done[8][0], done[1][0]) < 2e-5  # a fiftieth of one step of 1e-3
    for one, eight in zip(*(json.loads((done[n][0] / "training.json").read_text()) for n in (1, 8)), strict=True):
        assert {n: pytest.approx(eight[n], abs=1e-4) for n in ("loss", "nll", "odds_ratio", "accuracy")}.items() <= one.items()


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_a_resumed_run_equals_the_unbroken_one(train, sft_policies, tmp_path, method):
    whole, _ = train("orpo", spec(method), sft_policies(method), work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = train("orpo", spec(method), sft_policies(method), work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert payload(resumed) == payload(whole)


def test_it_learns_what_was_chosen(shop, train, sft_policies, tmp_path):
    """Chosen answers begin with `yes`, rejected ones with `no`: so do answers to new prompts, and without updates they do not."""
    found = {}
    for rate in (1e-12, 3e-3):
        out, _ = train("orpo", spec("full", max_steps=30, learning_rate=rate, beta=1.0), sft_policies("lora"))
        loaded = load(out, Run(tmp_path, shop.models, Execution(device="cpu")))
        encoder = Encoder(loaded.tokenizer)
        yes, no = (encoder.ids(word)[0] for word in ("yes", "no"))
        margins = []
        for words in tiny.sentences(120)[70:80]:
            with torch.no_grad():
                ids = torch.tensor([encoder.prompt([{"role": "user", "content": words}])])
                last = loaded.model(ids).logits[0, -1].log_softmax(-1)
            margins.append(float(last[yes] - last[no]))
        found[rate] = sum(margins) / len(margins)
    assert found[3e-3] > found[1e-12] + 2
