"""Each training job on the tiny model: what moves, what stays, where it starts, and that it comes out the same again."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from tasks.core.contract import Execution, Inputs, Metrics, Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.files import DigestCache, remove, tree
from tasks.policy import base_path, read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training import __main__ as child
from tasks.training import dpo, fit
from tasks.training.data import Encoder
from tasks.training.models import load
from tasks.training.reward import score_texts

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}
RATE = {"sft": 1e-2, "reward": 3e-3, "dpo": 1e-3}


def spec(job, method, **more):
    fields = {
        "method": tiny.METHOD[method] if isinstance(method, str) else method,
        "max_steps": 6,
        "global_batch": 8,
        "learning_rate": RATE[job],
        **more,
    }
    return SPECS[job].model_validate(fields)


def logits(shop, policy, tmp_path, **how):
    loaded = load(policy, Run(tmp_path, shop.models, Execution(device="cpu")), **how)
    with torch.no_grad():
        return loaded.model(torch.arange(3, 40)[None]).logits


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_loss_falls(train, sft_policies, job, method):
    _, metrics = train(job, spec(job, method), None if job == "sft" else sft_policies(method))
    assert metrics["steps"] == 6
    assert metrics["last_loss"] < metrics["first_loss"]
    assert metrics["start"] == {"full": "full"}.get(method, "fresh" if job == "sft" else "continue")
    assert metrics["rows_dropped"] == {}
    if job == "dpo":
        assert metrics["first_step_log_ratio"] < 1e-3
    if job == "reward":
        assert metrics["heldout_length_baseline"] == pytest.approx(0.5, abs=0.5)
        assert 0 <= metrics["heldout_accuracy"] <= 1


def test_a_curve_leaves_out_what_was_no_number_in_a_step():
    rows = [{"step": 1, "loss": 2.0, "grad_norm": float("nan")}, {"step": 2, "loss": 1.0, "grad_norm": 0.5}, {"step": 2, "x": 1}]
    assert fit._curve(rows) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "grad_norm": 0.5}]


def test_a_child_whose_metrics_are_no_numbers_says_so(tmp_path, monkeypatch):
    job = {"job": "sft", "spec": spec("sft", "lora").model_dump(), "inputs": {}, "out": str(tmp_path), "work": str(tmp_path),
           "models": str(tmp_path), "execution": {}}  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))

    def diverged(spec: SftSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
        return {"loss": float("nan")}

    monkeypatch.setattr("tasks.training.sft.run", diverged)
    assert child.main(tmp_path / "job.json") == DataError.exit_code
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["type"] == "DataError"
    assert error["message"].startswith("metrics.json: holds a number that is infinite or none")


def test_lora_moves_its_adapter_and_leaves_the_base_alone(shop, train):
    before = DigestCache(shop.root / "d.json").digest(shop.models)
    out, metrics = train("sft", spec("sft", "lora"))
    weights = load_file(out / "adapters/0-sft/adapter_model.safetensors")
    assert sorted({name.rpartition(".lora_")[2] for name in weights}) == ["A.weight", "B.weight"]
    assert all(bool(value.any()) for name, value in weights.items() if "lora_B" in name)  # B starts at zero
    assert metrics["trainable_parameters"] == sum(value.numel() for value in weights.values())
    assert sorted(file.name for file in tree(out)) == [
        "adapter_config.json", "adapter_model.safetensors", "method.json", "policy.json", "training.json",
    ]  # fmt: skip
    assert DigestCache(shop.root / "d.json").digest(shop.models) == before


def test_full_training_moves_every_weight_and_reloads(shop, train, tmp_path):
    out, _ = train("sft", spec("sft", "full"))
    old = load_file(base_path(shop.models, read_record(shop.policy).base) / "model.safetensors")
    new = load_file(out / "model/model.safetensors")
    assert old.keys() == new.keys()
    assert [name for name in old if torch.equal(old[name], new[name])] == []
    assert not torch.equal(logits(shop, out, tmp_path), logits(shop, shop.policy, tmp_path))


@pytest.mark.parametrize(
    ("job", "method"), [("sft", "lora"), ("dpo", "lora"), ("reward", "lora"), ("sft", "full"), ("sft", "qlora")]
)
def test_two_runs_leave_the_same_bytes_and_no_path(shop, train, sft_policies, job, method):
    policy = None if job == "sft" else sft_policies(method)
    first, second = (payload(train(job, spec(job, method, max_steps=3), policy)[0]) for _ in range(2))
    assert first == second
    assert [name for name, data in first.items() if b"/tmp" in data or str(shop.root).encode() in data] == []


def test_dpo_continues_the_sft_adapter_and_reward_too(train, sft_policies):
    for job, task in (("dpo", "policy"), ("reward", "reward")):
        out, _ = train(job, spec(job, "lora", max_steps=2), sft_policies("lora"))
        record = read_record(out)
        assert (record.task, record.adapters) == (task, ["0-sft"])
        assert [(link.stage, link.adapter) for link in record.chain] == [("sft", "0-sft"), (job, "0-sft")]


def test_another_shape_starts_a_fresh_adapter_on_the_merged_policy(shop, train, sft_policies, tmp_path):
    wider = {"name": "lora", "rank": 8}
    out, metrics = train("dpo", spec("dpo", wider, max_steps=2), sft_policies("lora"))
    assert (metrics["start"], read_record(out).adapters) == ("fresh", ["0-sft", "1-dpo"])
    assert metrics["first_step_log_ratio"] < 1e-3  # the reference is the SFT policy, not the bare base
    assert (out / "adapters/0-sft").is_dir()
    moved = (logits(shop, out, tmp_path) - logits(shop, sft_policies("lora"), tmp_path)).abs().max()
    assert 0 < moved < (logits(shop, out, tmp_path) - logits(shop, shop.policy, tmp_path)).abs().max()


def test_full_dpo_on_a_lora_policy_merges_it_first(train, sft_policies):
    out, metrics = train("dpo", spec("dpo", "full", max_steps=2), sft_policies("lora"))
    assert metrics["first_step_log_ratio"] < 1e-3
    assert read_record(out).adapters == []
    assert (out / "model/model.safetensors").is_file()


@pytest.mark.parametrize(("parent", "child"), [("qlora", "lora"), ("qlora", "full"), ("lora", "qlora")])
def test_a_method_that_could_not_start_at_the_policy_is_refused(train, sft_policies, parent, child):
    with pytest.raises(SpecError, match="merge the policy first"):
        train("dpo", spec("dpo", child), sft_policies(parent))


def test_the_reference_is_the_parent_policy(shop, train, sft_policies, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    train("dpo", spec("dpo", "lora", max_steps=4), sft_policies("lora"), work=work)
    reference = json.loads((work / dpo.REFERENCE).read_text())
    loaded = load(sft_policies("lora"), Run(tmp_path, shop.models, Execution(device="cpu")))
    from tasks.training.data import encode_pairs, read_rows

    rows = encode_pairs(Encoder(loaded.tokenizer), read_rows(shop.preferences, "train"), max_length=100).rows
    for number, pair in reference.items():
        row = rows[int(number)]
        for ids, known in zip((row["chosen_ids"], row["rejected_ids"]), pair, strict=True):
            whole = torch.tensor([row["prompt_ids"] + ids])
            with torch.no_grad():
                logp = loaded.model(whole).logits[0, :-1].log_softmax(-1)
            own = logp.gather(1, whole[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()
            assert float(own) == pytest.approx(known, abs=1e-3)


def test_a_reference_that_is_not_the_start_is_an_error(train, sft_policies, tmp_path):
    spec_ = spec("dpo", "lora", max_steps=2)
    train("dpo", spec_, sft_policies("lora"), work=tmp_path)
    remove(tmp_path / "checkpoints")
    known = json.loads((tmp_path / dpo.REFERENCE).read_text())
    wrong = {row: [chosen - 1, rejected] for row, (chosen, rejected) in known.items()}
    (tmp_path / dpo.REFERENCE).write_text(json.dumps(wrong))
    with pytest.raises(AlignError, match="did not start at its reference: log-ratio 1 nats"):
        train("dpo", spec_, sft_policies("lora"), work=tmp_path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_scores_alike_alone_and_padded(shop, train, sft_policies, tmp_path, method):
    out, metrics = train("reward", spec("reward", method), sft_policies(method))
    loaded = load(out, Run(tmp_path, shop.models, Execution(device="cpu")))
    encoder = Encoder(loaded.tokenizer)
    from tasks.training.data import read_rows, scored_ids

    rows = read_rows(shop.preferences, "heldout")
    texts = [scored_ids(encoder, row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    alone = score_texts(loaded.model, encoder, texts, batch=1)
    assert score_texts(loaded.model, encoder, texts, batch=5) == pytest.approx(alone, abs=1e-5)
    margins = [alone[i] - alone[i + 1] for i in range(0, len(alone), 2)]
    assert sum(margins) / len(margins) == pytest.approx(metrics["heldout_margin"], abs=1e-5)  # what was saved is what was trained
    assert loaded.model.config.pad_token_id == encoder.pad


def test_a_policy_whose_base_was_altered_is_refused(shop, train, tmp_path):
    import shutil

    models = tmp_path / "models"
    shutil.copytree(shop.models, models)
    base = base_path(models, read_record(shop.policy).base)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    with pytest.raises(DataError, match=r"config\.json: sha256 .* instead of .*not the base tiny"):
        load(shop.policy, Run(tmp_path, models, Execution(device="cpu")))


@pytest.mark.parametrize(("field", "word"), [("tokenizer", "tokenizer"), ("template", "chat template")])
def test_a_policy_trained_with_another_tokenizer_or_template_is_refused(shop, tmp_path, field, word):
    record = json.loads((shop.policy / "policy.json").read_text()) | {field: "0" * 64}
    (tmp_path / "policy.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"its {word} has sha256"):
        load(tmp_path, Run(tmp_path, shop.models, Execution(device="cpu")))


def test_divergence_is_an_error(train):
    with pytest.raises(SpecError, match="training diverged"):
        train("sft", spec("sft", "full", learning_rate=1e30, max_grad_norm=1e30))


def test_dropping_too_many_rows_is_an_error(train):
    with pytest.raises(DataError, match=r"left out|none of 32"):
        train("sft", spec("sft", "lora", max_length=20))


def test_targets_that_the_model_has_not_are_refused_with_those_it_has(train):
    with pytest.raises(SpecError, match=r"targets \{'query'\}: llama has no such modules; .* called down_proj, .*, v_proj"):
        train("sft", spec("sft", {"name": "lora", "targets": ["query"]}))
