"""Bottleneck adapters sit where the paper puts them, have its number of weights, go through every job, and never merge."""

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file
from small_models import HIDDEN, LAYERS, build, inputs, logits, steps, tensors, trainable, wrap
from transformers import JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM, XLNetConfig, XLNetLMHeadModel

from tasks.core.errors import SpecError
from tasks.core.files import tree
from tasks.policy import ADAPTERS, read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training.methods.bottleneck import BottleneckConfig, BottleneckLayer, NormLayer, places

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SIZE = 4
MODULE = 2 * SIZE * HIDDEN + HIDDEN + SIZE
"""weights of a module: 2md + d + m (section 2.1 of arXiv:1902.00751)"""
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}


def spec(job, **more):
    given = {"method": tiny.METHOD["bottleneck"], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-3, **more}
    return SPECS[job].model_validate(given)


def wrapped(kind, **more):
    return wrap(build(kind), BottleneckConfig(size=SIZE, **more), kind)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("llama", ["self_attn.o_proj", "mlp.down_proj"]),
        ("gpt2", ["attn.c_proj", "mlp.c_proj"]),
        ("opt", ["self_attn.out_proj", "fc2"]),
        ("bert", ["attention.output.dense", "output.dense"]),
        ("mixtral", ["self_attn.o_proj", "mlp"]),
        ("gpt-oss", ["self_attn.o_proj", "mlp"]),
        ("qwen3", ["self_attn.o_proj", "mlp.down_proj"]),
        ("phi3", ["self_attn.o_proj", "mlp.down_proj"]),  # defines the output of its attention before the inputs
    ],
)
def test_a_module_ends_attention_and_feed_forward_part_of_each_layer(kind, ends):
    found = places(build(kind))
    assert [name.split(f".{i // 2}.", 1)[1] for i, name in enumerate(found)] == ends * LAYERS


def test_an_encoder_decoder_gets_one_behind_its_cross_attention_too():
    encoder = [
        f"encoder.block.{i}.{end}" for i in range(LAYERS) for end in ("layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo")
    ]
    ends = ("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o", "layer.2.DenseReluDense.wo")
    assert places(build("t5")) == encoder + [f"decoder.block.{i}.{end}" for i in range(LAYERS) for end in ends]


@pytest.mark.parametrize(
    ("kind", "modules", "norms", "norm"),
    [
        ("llama", 2 * LAYERS, 2 * LAYERS + 1, HIDDEN),
        ("gpt2", 2 * LAYERS, 2 * LAYERS + 1, 2 * HIDDEN),
        ("opt", 2 * LAYERS, 2 * LAYERS + 1, 2 * HIDDEN),
        ("bert", 2 * LAYERS, 2 * LAYERS + 2, 2 * HIDDEN),  # one more behind the embeddings, one in the language-model head
        ("mixtral", 2 * LAYERS, 2 * LAYERS + 1, HIDDEN),
        ("t5", 5 * LAYERS, 5 * LAYERS + 2, HIDDEN),  # two sub-layers in an encoder layer, three in a decoder layer
    ],
)
def test_the_trained_weights_are_those_of_the_papers_formula(kind, modules, norms, norm):
    assert trainable(wrapped(kind)) == modules * MODULE + norms * norm
    assert trainable(wrapped(kind, norms=False)) == modules * MODULE


def test_the_reward_head_comes_on_top():
    assert trainable(wrapped("llama-reward")) == 2 * LAYERS * MODULE + (2 * LAYERS + 1) * HIDDEN + HIDDEN


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_a_module_adds_up_of_the_activation_of_down_to_its_input(activation):
    model = steps(wrapped("llama", activation=activation))
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    assert isinstance(layer, BottleneckLayer)
    x = torch.randn(2, 3, layer.base_layer.in_features)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    out = layer.base_layer(x)
    inner = getattr(torch.nn.functional, activation)(out @ down.weight.T + down.bias)
    assert torch.allclose(layer(x), out + inner @ up.weight.T + up.bias, atol=1e-6)


def test_the_residual_is_added_after_the_module():
    """With a module that maps everything to zero, the layer passes its input through."""
    model = wrapped("llama", norms=False)
    decoder = model.base_model.model.model.layers[0]
    x = torch.randn(1, 4, HIDDEN)
    with torch.no_grad():
        for layer in (decoder.self_attn.o_proj, decoder.mlp.down_proj):
            layer.base_layer.weight.zero_()
        rotary = model.base_model.model.model.rotary_emb(x, torch.arange(4)[None])
        assert torch.equal(decoder(x, position_embeddings=rotary), x)
        decoder.mlp.down_proj.bottleneck_up["default"].bias.fill_(1.0)
        assert torch.equal(decoder(x, position_embeddings=rotary), x + 1)


def test_norms_are_copies_of_each_adapter():
    model = steps(wrapped("gpt2"))
    norm = model.base_model.model.transformer.ln_f
    assert isinstance(norm, NormLayer)
    x = torch.randn(2, HIDDEN)
    assert torch.equal(norm.base_layer.weight, build("gpt2").transformer.ln_f.weight)
    assert torch.equal(norm(x), norm.bottleneck_norm["default"](x))
    assert not torch.equal(norm(x), norm.base_layer(x))


def test_two_active_adapters_are_refused():
    model = wrapped("llama")
    model.add_adapter("second", BottleneckConfig(size=SIZE, task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="default, second are active together; activate one at a time"):
        model(**inputs(model))


def test_a_second_adapter_may_have_another_size_and_leave_the_norms():
    model = wrapped("gpt2")
    model.add_adapter("second", BottleneckConfig(size=2, norms=False, activation="relu", task_type="CAUSAL_LM"))
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(build("gpt2")))
    assert trainable(model) == 2 * LAYERS * (2 * 2 * HIDDEN + HIDDEN + 2)


def test_it_cannot_be_merged():
    model = steps(wrapped("llama"))
    before = tensors(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(SpecError, match=r"its modules are not linear.*leave merge out.*such as lora"):
            merge()
    assert all(torch.equal(before[name], p) for name, p in tensors(model).items())


@pytest.mark.parametrize(
    "model",
    [
        lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)),
        lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=4, d_inner=24)),
        lambda: JambaForCausalLM(
            JambaConfig(
                vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=24, attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False,
            )
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_another_structure_is_refused(model):
    with pytest.raises(SpecError, match=r"method bottleneck: .* no place for the modules; use lora or layer_norm"):
        places(model())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation 'tanh': use one of gelu, relu, silu"):
        BottleneckConfig(activation="tanh")


def test_sft_then_reward_and_dpo_go_on_with_the_same_adapter(train, sft_policies):
    sft = sft_policies("bottleneck")
    before = load_file(sft / ADAPTERS / "0-sft/adapter_model.safetensors")
    for job in ("reward", "dpo"):
        out, metrics = train(job, spec(job), sft)
        assert (metrics["start"], read_record(out).adapters) == ("continue", ["0-sft"])
        after = load_file(out / ADAPTERS / "0-sft/adapter_model.safetensors")
        assert after.keys() - before.keys() == ({"base_model.model.score.weight"} if job == "reward" else set())
        assert all(not torch.equal(after[name], before[name]) for name in before)
        if job == "dpo":
            assert metrics["first_step_log_ratio"] < 1e-3


def test_only_bottleneck_follows_bottleneck(train, sft_policies):
    other = DpoSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8})
    with pytest.raises(SpecError, match="trained with bottleneck, which cannot be merged"):
        train("dpo", other, sft_policies("bottleneck"))


@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(train, sft_policies, tmp_path, job):
    policy = None if job == "sft" else sft_policies("bottleneck")
    whole, _ = train(job, spec(job), policy, work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = train(job, spec(job), policy, work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert [(f.name, f.read_bytes()) for f in tree(resumed)] == [(f.name, f.read_bytes()) for f in tree(whole)]
