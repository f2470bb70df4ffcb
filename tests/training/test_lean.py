"""LoRA without PEFT's temporaries: the same numbers and gradients in every role; PEFT's own pass where it is not plain."""

from copy import deepcopy

import practising
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from practising import spec

from tasks.training import lean as module
from tasks.training.adapters import start
from tasks.training.lean import lean
from tasks.training.roles import Clearance, Roles, Said, SharedReward, reward_model

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture
def stage(studio):
    """`stage(checkpointing)`: roles with every adapter moved off its start, the judge, and a batch."""

    def get(checkpointing=False, method="lora"):
        run = studio.run()
        begin = start(studio.sft(method), spec(method), run)
        roles = Roles(begin, checkpointing=checkpointing)
        judge = reward_model(roles, begin, studio.reward_model(method, method), run)
        roles.add_value(judge if isinstance(judge, SharedReward) else None, Clearance(0.25, 0.5), 2.0)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in roles.model.named_parameters():
                if "lora_" in name:
                    p.add_(0.05 * torch.randn_like(p))
        texts = ("yes cat", "no dog says what", "blue")
        prompts = [roles.encoder.prompt([{"role": "user", "content": text}]) for text in texts]
        return roles, judge, Said.of(prompts, [roles.encoder.ids(text) for text in texts], roles.encoder.pad, roles.device)

    return get


def by_peft(model):
    """Undo `lean`."""
    for layer in model.modules():
        layer.__dict__.pop("forward", None)


def learned(roles, batch, role):
    """What the role says of the batch, and the gradients of what is trained."""
    roles.zero_grad()
    with role(learns=True):
        said = roles.log_probs(batch, temperature=0.7)[0] if role == roles.policy else roles.values(batch)
        (said * torch.linspace(-1, 1, said.numel()).view_as(said)).sum().backward()
    return said.detach(), {name: p.grad.clone() for name, p in roles.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["policy", "value"])
def test_a_role_that_learns_says_what_it_says_under_peft_and_has_the_same_gradients(stage, name, checkpointing):
    roles, _, batch = stage(checkpointing)
    role = getattr(roles, name)
    assert lean(roles.model) > 0
    found, gradients = learned(roles, batch, role)
    by_peft(roles.model)
    wanted, by_name = learned(roles, batch, role)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert gradients.keys() == by_name.keys()
    assert len(gradients) >= len(roles.trained()[0])
    torch.testing.assert_close(gradients, by_name, **CLOSE)


def test_reference_and_reward_model_say_what_they_say_under_peft(stage):
    roles, judge, batch = stage()
    texts = [([{"role": "user", "content": "what is the sky"}], text) for text in ("blue", "yes cat")]

    def told():
        with torch.no_grad(), roles.reference():
            return roles.log_probs(batch, temperature=1.0)[0], torch.tensor(judge.scores(texts, 2))

    found = told()
    by_peft(roles.model)
    torch.testing.assert_close(found, told(), **CLOSE)


def test_answers_with_a_key_value_cache_are_those_of_peft(stage):
    roles, _, batch = stage()
    given = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT, "max_new_tokens": 8, "do_sample": False}
    with roles.policy():
        found = roles.model.generate(**given)
        by_peft(roles.model)
        assert torch.equal(found, roles.model.generate(**given))


def small(bias=False, **more):
    """A network of two layers under LoRA, moved off its start."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=bias), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=bias))
    model = get_peft_model(net, LoraConfig(target_modules=["0", "2"], r=2, lora_alpha=6, init_lora_weights=False, **more))
    return model, torch.randn(4, 5, 6)


@pytest.fixture
def lean_passes(monkeypatch):
    """Grows by one with every layer that computes lean."""
    passes = []
    real = module._Lean.apply
    monkeypatch.setattr(module._Lean, "apply", lambda *given: passes.append(1) or real(*given))
    return passes


def same(model, x, ours):
    """The lean model and PEFT's agree on outputs and on gradients, the input's included."""
    results = []
    for one in (ours, model):
        given = x.clone().requires_grad_()
        y = one(given)
        y.square().sum().backward()
        results.append([y.detach(), given.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("more", [{}, {"bias": True}, {"use_rslora": True}, {"lora_dropout": 0.0}])
def test_plain_lora_is_taken_over(lean_passes, more):
    model, x = small(**more)
    ours = deepcopy(model)
    assert lean(ours) == 2
    same(model, x, ours)
    assert len(lean_passes) == 2


def merged(model):
    model.merge_adapter()


def two_active(model):
    model.add_adapter("other", LoraConfig(target_modules=["0", "2"], r=3, init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])


def absent(model):
    model.add_adapter("other", LoraConfig(target_modules=["0"], r=3, init_lora_weights=False))
    model.set_adapter("other")


def learning_base(model):
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.base_layer.weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("change", "more", "lean_layers"),
    [
        (merged, {}, 0),
        (two_active, {}, 0),
        (absent, {}, 1),
        (learning_base, {}, 0),
        (None, {"use_dora": True}, 0),
        (None, {"bias": True, "lora_bias": True}, 0),
    ],
)
def test_whatever_is_no_plain_lora_is_left_to_peft(lean_passes, change, more, lean_layers):
    torch.manual_seed(1)
    model, x = small(**more)
    if change:
        change(model)
    ours = deepcopy(model)
    lean(ours)
    same(model, x, ours)
    assert len(lean_passes) == lean_layers


def test_disabled_adapters_leave_the_base(lean_passes):
    model, x = small()
    lean(model)
    with model.disable_adapter():
        found = model(x)
    assert not lean_passes
    torch.testing.assert_close(found, model.unload()(x))


def test_dropout_is_lean_in_use_and_left_to_peft_in_training(lean_passes):
    model, x = small(lora_dropout=0.5)
    lean(model)
    model.train()(x)
    assert not lean_passes
    model.eval()(x)
    assert len(lean_passes) == 2


def test_other_precision_than_the_base_is_left_to_peft(lean_passes):
    model, x = small()
    lean(model.bfloat16())
    for p in model.parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    assert model(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        model.float()(x)
    assert not lean_passes


def test_free_memory_goes_back_once_on_a_cpu_and_where_the_library_cannot_nothing_happens(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "_trim", lambda: calls.append)
    module.give_back(torch.device("cuda"))
    module.give_back(torch.device("cpu"))
    assert calls == [0]
    monkeypatch.setattr(module, "_trim", lambda: None)
    module.give_back(torch.device("cpu"))
    assert calls == [0]


def test_a_system_without_that_call_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: object())
    assert module._trim.__wrapped__() is None
