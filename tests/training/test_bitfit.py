"""BitFit trains biases and nothing else, adds them where a model has none, and merges wherever the model can be loaded again."""

import shutil
from collections import Counter

import pytest
import tiny
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import get_peft_model
from safetensors.torch import load_file
from small_models import HIDDEN, INNER, LAYERS, WORDS, build, inputs, logits, steps, tensors, trainable, wrap
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    MambaConfig,
    MambaForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from tasks.chain import NO_BIASES
from tasks.core.contract import Execution, Run
from tasks.core.errors import SpecError
from tasks.core.files import tree
from tasks.merge import MergeSpec
from tasks.policy import ADAPTERS, MODEL, read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training.methods.bitfit import BitFitConfig, places, switches
from tasks.training.models import load, quantization

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}


def spec(job, **more):
    given = {"method": tiny.METHOD["bitfit"], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-3, **more}
    return SPECS[job].model_validate(given)


def wrapped(kind):
    return wrap(build(kind), BitFitConfig(), kind)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        # a model with biases: all of them.  GPT-2: ln 2d, c_attn 3d, c_proj d, c_fc 4d, c_proj d a layer, and the last norm
        ("gpt2", LAYERS * 11 * HIDDEN + HIDDEN),
        # q, k, v, out d each, two norms d each, fc1 f, fc2 d a layer, and the last norm
        ("opt", LAYERS * (7 * HIDDEN + INNER) + HIDDEN),
        # as OPT, and behind the embeddings a norm, in the head a linear layer and a norm; the bias on the words stays
        ("bert", LAYERS * (7 * HIDDEN + INNER) + 3 * HIDDEN),
        # the same body with a pooler, and a classifier of two labels that is trained whole
        ("bert-classifier", LAYERS * (7 * HIDDEN + INNER) + 2 * HIDDEN + 2 * (HIDDEN + 1)),
        # none at all: q and o d each, k and v d/2 each, gate and up f each, down d a layer
        ("llama", LAYERS * (4 * HIDDEN + 2 * INNER)),
        ("llama-reward", LAYERS * (4 * HIDDEN + 2 * INNER) + HIDDEN),
        # none: q, k, v, o d each, wi f, wo d in an encoder layer, and four more d for cross-attention in a decoder layer
        ("t5", LAYERS * (5 * HIDDEN + INNER) + LAYERS * (9 * HIDDEN + INNER)),
        # none: attention's as in Llama; the experts and the router are no linear layers
        ("mixtral", LAYERS * 3 * HIDDEN),
        # q, o d each, k and v 8 each, router 4, and for each of 4 experts gate and up 2f, down d
        ("gpt-oss", LAYERS * (2 * HIDDEN + 2 * 8 + 4 + 4 * (2 * INNER + HIDDEN))),
    ],
)
def test_the_trained_weights_are_the_biases_counted_by_hand(kind, count):
    assert trainable(wrapped(kind)) == count


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert", "gpt-oss"])
def test_every_bias_of_the_body_is_trained_once(kind):
    base, model = build(kind), wrapped(kind)
    head = base.get_output_embeddings()
    left = {id(p) for p in head.parameters()}
    there = Counter(name for name, p in base.named_parameters() if name.endswith("bias") and id(p) not in left)
    trained = Counter(
        name.removeprefix("base_model.model.").replace("bitfit_delta.default.", "")
        for name, p in model.named_parameters()
        if p.requires_grad
    )
    assert trained == there


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_without_biases_gets_one_on_every_linear_layer_but_the_head(kind):
    base = build(kind)
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(places(base)) == linear - {"lm_head"}


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert", "llama", "gpt-oss"])
def test_merged_it_is_a_plain_model_that_loads_again(kind, tmp_path):
    model = steps(wrapped(kind))
    before = logits(model)
    base = tensors(build(kind))
    merged = model.merge_and_unload()
    assert (logits(merged) - before).abs().max() < 1e-5
    merged.save_pretrained(tmp_path)
    again = (AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(merged))
    assert (logits(build(kind)) - before).abs().max() > 1e-3
    after = tensors(again)
    assert {name for name in base if not torch.equal(base[name], after[name])} <= {n for n in base if n.endswith("bias")}
    assert all(name.endswith(".bias") for name in after.keys() - base.keys())


def test_a_merged_llama_says_that_it_has_biases():
    model = wrapped("llama")
    assert switches(model.base_model.model) == {"attention_bias": True, "mlp_bias": True}
    config = model.merge_and_unload().config
    assert (config.attention_bias, config.mlp_bias) == (True, True)


@pytest.mark.parametrize("kind", ["t5", "mistral", "qwen3", "mixtral"])
def test_a_merge_that_could_not_be_loaded_is_refused_and_changes_nothing(kind):
    model = steps(wrapped(kind))
    before = tensors(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(SpecError, match=f"the config of {kind} has no switch for the biases .* leave merge out"):
            merge()
    assert all(torch.equal(before[name], value) for name, value in tensors(model).items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merge_in_place_is_taken_back_bit_for_bit(kind):
    model = steps(wrapped(kind))
    before, parameters = logits(model), tensors(model)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    assert (logits(model) - before).abs().max() < 1e-5
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build(kind)))
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(parameters[name], value) for name, value in tensors(model).items())


def test_a_merge_in_place_then_for_good_still_says_so():
    model = steps(wrapped("llama"))
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged"):
        config = model.merge_and_unload().config
    assert (config.attention_bias, config.mlp_bias) == (True, True)


def test_two_active_adapters_add_up():
    model = steps(wrapped("gpt2"))
    model.add_adapter("second", BitFitConfig(task_type="CAUSAL_LM"))
    model.set_adapter("second")
    steps(model)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    merged = model.merge_and_unload()
    assert (logits(merged) - both).abs().max() < 1e-5
    bias = merged.transformer.ln_f.bias
    assert not torch.equal(bias, build("gpt2").transformer.ln_f.bias)


def test_a_damaged_adapter_is_not_merged_safely():
    model = wrapped("gpt2")
    with torch.no_grad():
        model.base_model.model.transformer.ln_f.bitfit_delta["default"]["bias"][0] = torch.nan
    with pytest.raises(ValueError, match="a merged bias is not finite"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_base_in_four_bits_trains_and_merges(kind, tmp_path):
    build(kind).eval().save_pretrained(tmp_path / "base")

    def base():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization(), device_map="cpu")
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False  # as tasks.training.models does
        return model.train()

    model = wrap(base(), BitFitConfig(), kind)
    assert torch.equal(logits(model), logits(base()))
    assert trainable(model) == trainable(wrapped(kind))
    steps(model)
    before = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base()))
    assert (logits(model.merge_and_unload()) - before).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_biases_out_of_reach_are_refused():
    with pytest.raises(SpecError, match=r"holds biases beside modules of its own.*use lora or layer_norm"):
        places(XLNetLMHeadModel(XLNetConfig(vocab_size=WORDS, d_model=16, n_layer=1, n_head=4, d_inner=24)))
    with pytest.raises(SpecError, match=r"mamba mixes tokens by a state space.*use layer_norm or full"):
        places(MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, state_size=4)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert", "gpt-oss"])
def test_every_trained_bias_gets_a_gradient(kind):
    model = wrapped(kind)
    model(**inputs(model)).logits.square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_sft_then_reward_and_dpo_go_on_with_the_same_adapter(train, sft_policies):
    sft = sft_policies("bitfit")
    before = load_file(sft / ADAPTERS / "0-sft/adapter_model.safetensors")
    for job in ("reward", "dpo"):
        out, metrics = train(job, spec(job), sft)
        assert (metrics["start"], read_record(out).adapters) == ("continue", ["0-sft"])
        after = load_file(out / ADAPTERS / "0-sft/adapter_model.safetensors")
        assert after.keys() - before.keys() == ({"base_model.model.score.weight"} if job == "reward" else set())
        assert any(not torch.equal(after[name], before[name]) for name in before)
        if job == "dpo":
            assert metrics["first_step_log_ratio"] < 1e-3


def test_lora_follows_bitfit_on_the_merged_policy(train, sft_policies):
    other = DpoSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8})
    out, metrics = train("dpo", other, sft_policies("bitfit"))
    assert (metrics["start"], read_record(out).adapters) == ("fresh", ["0-sft", "1-dpo"])
    assert metrics["first_step_log_ratio"] < 1e-3


def test_the_merge_job_writes_a_model_that_transformers_alone_loads(shop, train, sft_policies, tmp_path):
    policy = sft_policies("bitfit")
    out, certificate = train("merge", MergeSpec(), policy)
    assert certificate["max_logit_distance"] < 1e-5 < certificate["adapter_effect"]
    ours = load(policy, Run(tmp_path, shop.models, Execution(device="cpu"))).model
    assert (logits(AutoModelForCausalLM.from_pretrained(out / MODEL)) - logits(ours)).abs().max() < 1e-5


@pytest.mark.parametrize("job", ["sft", "reward", "dpo"])
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(train, sft_policies, tmp_path, job):
    policy = None if job == "sft" else sft_policies("bitfit")
    whole, _ = train(job, spec(job), policy, work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = train(job, spec(job), policy, work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert [(f.name, f.read_bytes()) for f in tree(resumed)] == [(f.name, f.read_bytes()) for f in tree(whole)]


@pytest.mark.parametrize("family", NO_BIASES)
def test_a_family_that_plans_take_for_one_without_biases_is_one(family):
    config = AutoConfig.for_model(family)
    for name in {"num_hidden_layers", "num_layers", "n_layers", "num_decoder_layers"} & set(config.to_dict()):
        setattr(config, name, 2)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = get_peft_model(kind.from_config(config), BitFitConfig(target_modules=places(kind.from_config(config))))
        with pytest.raises(SpecError, match="has no switch for the biases"):
            switches(model.base_model.model)
