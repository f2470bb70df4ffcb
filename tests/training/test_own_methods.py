"""Bottleneck, BitFit and head adapters have PEFT's manners: build, save, load, switch, disable, delete, several on a base."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file
from small_models import build, logits, moved, save, steps, tensors, trainable, wrap

from tasks.training.methods.bitfit import BitFitConfig
from tasks.training.methods.bottleneck import BottleneckConfig
from tasks.training.methods.head import HeadConfig
from tasks.training.methods.known import make_all_known
from tasks.training.methods.tuner import OwnType, make_known

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CONFIGS = {
    "bottleneck": lambda: BottleneckConfig(size=4),
    "bitfit": BitFitConfig,
    "head": HeadConfig,
}
GENERAL = ["llama", "gpt2", "opt", "t5", "bert", "bert-classifier", "mixtral", "gpt-oss"]
HEADED = ["llama-reward", "bert-classifier"]
CASES = [(m, k) for m in ("bottleneck", "bitfit") for k in [*GENERAL, "llama-reward"]] + [("head", k) for k in HEADED]
OWN = {"bottleneck": ".bottleneck_", "bitfit": ".bitfit_delta.", "head": "(none)"}
every = pytest.mark.parametrize(("method", "kind"), CASES)


def wrapped(method, kind):
    return wrap(build(kind), CONFIGS[method](), kind)


@every
def test_starts_bit_equal_to_the_base(method, kind):
    assert torch.equal(logits(wrapped(method, kind)), logits(build(kind)))


@pytest.mark.parametrize("method", ["bottleneck", "bitfit"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_bfloat16_base_starts_bit_equal_and_its_adapters_train_in_float32(method, kind):
    model = wrap(build(kind).to(torch.bfloat16), CONFIGS[method](), kind)
    assert torch.equal(logits(model), logits(build(kind).to(torch.bfloat16)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before = tensors(model)
    assert all(OWN[method] in name for name in moved(steps(model), before))


@every
def test_training_moves_the_adapter_and_nothing_else(method, kind):
    model = wrapped(method, kind)
    before = tensors(model)
    wanted = {n for n in before if OWN[method] in n or ".modules_to_save.default." in n}
    assert moved(steps(model), before) == wanted
    assert wanted == {name for name, p in model.named_parameters() if p.requires_grad}


@every
def test_switched_off_it_is_the_base_bit_for_bit(method, kind):
    model = steps(wrapped(method, kind))
    changed = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build(kind)))
    assert torch.equal(logits(model), changed)
    assert not torch.allclose(changed, logits(build(kind)), atol=1e-3)


@every
def test_unloading_gives_the_base_back_with_the_trained_head(method, kind):
    trained = steps(wrapped(method, kind))
    head = {name.split(".")[-1]: p for name, p in trained.named_parameters() if ".modules_to_save.default." in name}
    model, base = trained.unload(), build(kind)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.startswith(("score.", "classifier.")):
                parameter.copy_(head.pop(name.split(".")[-1]))
    assert not head
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in base.named_parameters()]
    assert torch.equal(logits(model), logits(base))


@every
def test_saved_and_loaded_it_answers_the_same(method, kind, tmp_path):
    model = steps(wrapped(method, kind))
    save(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == {"bottleneck": "BOTTLENECK", "bitfit": "BITFIT", "head": "HEAD_TUNING"}[method]
    own = {n for n, p in model.named_parameters() if p.requires_grad}
    saved = {n.replace(".default", "").replace(".modules_to_save", "") for n in own}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == saved
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert type(config) is type(CONFIGS[method]())
    for cheap in (False, True):  # the second makes the adapter without memory first
        again = PeftModel.from_pretrained(build(kind), tmp_path, low_cpu_mem_usage=cheap)
        assert torch.equal(logits(again), logits(model))
        assert trainable(again) == 0
    again = PeftModel.from_pretrained(build(kind), tmp_path, is_trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == own
    assert save(again, tmp_path / "again")
    names = ("adapter_model.safetensors",)
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [(tmp_path / n).read_bytes() for n in names]


@every
def test_two_adapters_on_a_base_are_switched_and_deleted(method, kind, tmp_path):
    alone = {name: steps(wrapped(method, kind), rate=rate) for name, rate in (("one", 1e-2), ("two", 3e-2))}
    for name, model in alone.items():
        save(model, tmp_path / name)
    base = build(kind)
    both = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", "two")
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        assert torch.equal(logits(both), logits(alone[name]))
        assert both.active_adapters == [name]
        assert all(f".{name}" in n for n, p in both.named_parameters() if p.requires_grad)
        assert trainable(both) == trainable(alone[name])
    before = tensors(both)
    changed = moved(steps(both), before)
    assert changed
    assert all(".one" in name for name in changed)
    both.set_adapter("two")
    both.delete_adapter("one")
    assert torch.equal(logits(both), logits(alone["two"]))
    assert not [name for name, _ in both.named_parameters() if ".one" in name]


@every
@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_after_the_active_one_is_deleted_the_other_works(method, kind):
    model = steps(wrapped(method, kind))
    before = logits(model)
    config = CONFIGS[method]()
    config.task_type = model.peft_config["default"].task_type
    model.add_adapter("second", config)
    assert torch.equal(logits(model), before)
    assert trainable(model) == sum(p.numel() for n, p in model.named_parameters() if ".default" in n)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(build(kind)))
    model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), before)


@every
def test_peft_reports_its_state(method, kind, capsys):
    model = wrapped(method, kind)
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["default"], ["default"])
    assert status.peft_types == {"default": OwnType(model.peft_config["default"].peft_type).value}
    assert status.requires_grad == {"default": True}
    assert status.trainable_params == trainable(model)
    model.print_trainable_parameters()
    assert f"trainable params: {trainable(model):,}" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "kind"), [(m, k) for m, k in CASES if k not in ("llama-reward",)])
def test_gradient_checkpointing_changes_nothing(method, kind):
    plain = steps(wrapped(method, kind))
    model = wrapped(method, kind)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    steps(model)
    assert torch.equal(logits(model), logits(plain))


def test_registering_again_changes_nothing_and_a_clash_is_heard(monkeypatch):
    tuner = PEFT_TYPE_TO_TUNER_MAPPING["BITFIT"]
    make_all_known()
    assert PEFT_TYPE_TO_TUNER_MAPPING["BITFIT"] is tuner
    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, "BITFIT", PEFT_TYPE_TO_TUNER_MAPPING["LORA"])
    with pytest.raises(RuntimeError, match="has a method BITFIT of its own"):
        make_known(OwnType.BITFIT, BitFitConfig, tuner)


def test_types_do_not_mix_on_a_base():
    model = wrapped("bitfit", "llama")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("other", BottleneckConfig(size=4, task_type="CAUSAL_LM"))
    assert get_peft_model(build("llama"), BottleneckConfig(size=4)).active_adapters == ["default"]  # no task type is fine too


@pytest.mark.parametrize("method", CONFIGS)
def test_a_module_that_is_trained_whole_gets_no_part_of_the_method(method, tmp_path):
    config = CONFIGS[method]()
    config.modules_to_save = ["pooler"]
    model = wrap(build("bert-classifier"), config, "bert-classifier")
    whole = {name for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." in name}
    assert {name.partition(".modules_to_save")[0].rpartition(".")[2] for name in whole} == {"pooler", "classifier"}
    assert not [name for name, _ in model.named_parameters() if "pooler" in name and OWN[method] in name]
    before = tensors(model)
    assert whole <= moved(steps(model), before)
    save(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build("bert-classifier"), tmp_path)), logits(model))
