"""A head is trained on a body that stays as it is, and rests as an adapter that holds the head alone."""

import shutil

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_models import HIDDEN, INNER, LAYERS, WORDS, build, logits, moved, save, steps, tensors, trainable, wrap
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from tasks.core.contract import Execution, Run
from tasks.core.errors import SpecError
from tasks.core.files import tree
from tasks.policy import ADAPTERS, read_record
from tasks.train import RewardSpec
from tasks.training.methods.head import HeadConfig
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPEC = RewardSpec.model_validate({"method": {"name": "head"}, "max_steps": 4, "global_batch": 8, "learning_rate": 1e-2})
SHAPE = {
    "vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": INNER,
}  # fmt: skip


def test_only_the_head_is_trained_and_counted():
    assert trainable(wrap(build("llama-reward"), HeadConfig(), "llama-reward")) == HIDDEN  # one label, no bias
    assert trainable(wrap(build("bert-classifier"), HeadConfig(), "bert-classifier")) == 2 * (HIDDEN + 1)


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [(BertForTokenClassification, "TOKEN_CLS", "classifier"), (BertForQuestionAnswering, "QUESTION_ANS", "qa_outputs")],
)
def test_heads_of_other_tasks(kind, task, head, tmp_path):
    def base():
        torch.manual_seed(0)
        model = kind(BertConfig(**SHAPE, num_labels=2))
        model.config.is_encoder_decoder = False
        return model

    from peft import get_peft_model

    model = get_peft_model(base(), HeadConfig(task_type=task))
    before = tensors(model)
    names = {f"base_model.model.{head}.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert moved(steps(model), before) == names
    save(model, tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {f"base_model.model.{head}.{n}" for n in ("weight", "bias")}
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path)), logits(model))


def test_merged_it_is_the_plain_model_with_the_new_head(tmp_path):
    model = steps(wrap(build("llama-reward"), HeadConfig(), "llama-reward"))
    before = logits(model)
    plain = model.merge_and_unload()
    assert torch.equal(logits(plain), before)
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(type(plain).from_pretrained(tmp_path)), before)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(SpecError, match="LlamaForCausalLM has no head called score or classifier or qa_outputs"):
        wrap(build("llama"), HeadConfig(), "llama")


@pytest.mark.parametrize("method", [None, "lora", "full"])
def test_a_reward_head_on_the_body_of_any_policy_that_merges(shop, train, sft_policies, tmp_path, method):
    policy = sft_policies(method) if method else None
    out, metrics = train("reward", SPEC, policy)
    record = read_record(out)
    assert metrics["trainable_parameters"] == 32  # the hidden size of the tiny model
    assert metrics["last_loss"] < metrics["first_loss"]
    assert record.adapters == (["0-sft", "1-reward"] if method == "lora" else ["0-reward"])
    saved = load_file(out / ADAPTERS / record.adapters[-1] / "adapter_model.safetensors")
    assert list(saved) == ["base_model.model.score.weight"]
    run = Run(tmp_path, shop.models, Execution(device="cpu"))
    body = load(out, run).model.base_model.model.model
    other = load(policy or shop.policy, run, merged=bool(policy)).model.model
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(body(ids).last_hidden_state, other(ids).last_hidden_state)


def test_a_head_goes_on_from_where_it_was(train, shop):
    first, _ = train("reward", SPEC)
    with_more = SPEC.model_copy(update={"max_steps": 3})
    out, metrics = train("reward", with_more, first)
    assert (metrics["start"], read_record(out).adapters) == ("continue", ["0-reward"])
    name = ADAPTERS + "/0-reward/adapter_model.safetensors"
    assert not torch.equal(*(next(iter(load_file(folder / name).values())) for folder in (first, out)))


def test_a_policy_that_cannot_be_merged_has_no_frozen_body_to_offer(train, sft_policies):
    with pytest.raises(SpecError, match="trained with bottleneck, which cannot be merged"):
        train("reward", SPEC, sft_policies("bottleneck"))


def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(train, tmp_path):
    whole, _ = train("reward", SPEC, work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = train("reward", SPEC, work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert [(f.name, f.read_bytes()) for f in tree(resumed)] == [(f.name, f.read_bytes()) for f in tree(whole)]


@pytest.mark.parametrize("on", [True, False])
def test_gradient_checkpointing_changes_nothing(train, on):
    out, _ = train("reward", SPEC, gradient_checkpointing=on)
    plain, _ = train("reward", SPEC)
    name = ADAPTERS + "/0-reward/adapter_model.safetensors"
    assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_the_method_that_is_asked_for_is_recorded(train):
    out, metrics = train("reward", SPEC)
    assert metrics["method"] == read_record(out).chain[-1].method == tiny.METHOD["head"]["name"]
