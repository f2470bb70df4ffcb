"""What vLLM would serve, over the adapters that every method really leaves, and over each rule alone."""

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from tasks.methods import METHODS
from tasks.policy import ADAPTERS, read_record
from tasks.vllm_format import VllmLora, vllm_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]
LLAMA = {"architectures": ["LlamaForCausalLM"]}
LOADS = {"lora": 8, "qlora": 8, "lora_plus": 8, "rslora": 8, "pissa": 8, "olora": 8, "loftq": 8}
"""of rank 4; pissa and olora rest as a LoRA of twice that"""
REFUSED = {
    "dora": "it is DoRA, which vLLM does not support",
    "bottleneck": "its adapter is of type BOTTLENECK, and vLLM reads LoRA alone",
    "prompt_tuning": "its adapter is of type PROMPT_TUNING, and vLLM reads LoRA alone",
    "p_tuning": "its adapter is of type PROMPT_TUNING, and vLLM reads LoRA alone",
    "prefix_tuning": "its adapter is of type PREFIX_TUNING, and vLLM reads LoRA alone",
    "p_tuning_v2": "its adapter is of type PREFIX_TUNING, and vLLM reads LoRA alone",
    "ia3": "its adapter is of type IA3, and vLLM reads LoRA alone",
    "bitfit": "its adapter is of type BITFIT, and vLLM reads LoRA alone",
    "layer_norm": "its adapter is of type LN_TUNING, and vLLM reads LoRA alone",
}


def test_every_method_that_leaves_an_adapter_of_a_policy_is_judged_here():
    assert {name for name, row in METHODS.items() if row.adapter and "sft" in row.learning_rate} == LOADS.keys() | REFUSED.keys()


@pytest.mark.parametrize("method", [*LOADS, *REFUSED])
def test_the_adapter_of_each_method_is_served_or_not(sft_policies, method):
    policy = sft_policies(method)
    found = vllm_lora(policy / ADAPTERS / read_record(policy).adapters[0], LLAMA)
    assert found == (VllmLora((), LOADS[method]) if method in LOADS else VllmLora((REFUSED[method],), None))


def test_a_reward_model_holds_its_head_and_is_refused(train):
    from tasks.train import RewardSpec

    spec = RewardSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8})
    out, _ = train("reward", spec)
    assert vllm_lora(out / ADAPTERS / "0-reward", LLAMA).problems == (
        "it holds whole modules (classifier, score), and vLLM takes none",
    )


def write(folder, tensors=None, **config):
    """A LoRA of rank 2 on one layer, with what is asked for otherwise."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    given = {f"{name}.lora_A.weight": torch.zeros(2, 8), f"{name}.lora_B.weight": torch.zeros(8, 2)}
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in fields.items() if value != "absent"}))
    save_file(given if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"bias": "all"}, "it trains biases (bias: all), which vLLM does not support"),
        ({"modules_to_save": ["lm_head"]}, "it holds whole modules (lm_head), and vLLM takes none"),
        ({"r": 1024}, "its rank is 1024, and 512 is the most that vLLM takes"),
        ({"lora_alpha": "absent"}, "adapter_config.json lacks lora_alpha"),
        ({"rank_pattern": {"q_proj": 4}}, "it uses ranks of single modules (rank_pattern), which vLLM does not read"),
        ({"alpha_pattern": {"q_proj": 4}}, "it uses scales of single modules (alpha_pattern), which vLLM does not read"),
        ({"lora_bias": True}, "it uses a bias of LoRA's own (lora_bias), which vLLM does not read"),
        (
            {"target_parameters": ["mlp.experts.down_proj"]},
            "it uses LoRA on parameters, such as fused experts (target_parameters), which vLLM does not read",
        ),
        ({"r": 3}, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight is 2 x 8, which is not of rank 3"),
    ],
)
def test_fields_that_vllm_refuses_or_never_reads(tmp_path, config, said):
    assert vllm_lora(write(tmp_path, **config), LLAMA) == VllmLora((said,), None)


A, B = torch.zeros(2, 8), torch.zeros(8, 2)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"base_model.model.q.lora_A.default.weight": A}, "vLLM cannot read the tensor base_model.model.q.lora_A.default.weight"),
        ({"base_model.model.q.lora_magnitude_vector": A}, "vLLM cannot read the tensor base_model.model.q.lora_magnitude_vector"),
        (
            {"base_model.model.mlp.experts.base_layer.lora_A.weight": A},
            "vLLM cannot read the tensor base_model.model.mlp.experts.base_layer.lora_A.weight",
        ),
        ({"base_model.model.q.lora_A.weight": A}, "q lacks one of lora_A and lora_B"),
        (
            {"base_model.model.vision_tower.q.lora_A.weight": A},
            "it changes vision_tower.q, and vLLM changes the language model alone",
        ),
        ({}, "adapter_model.safetensors holds no tensor"),
    ],
)
def test_tensors_that_vllm_cannot_read(tmp_path, tensors, said):
    assert vllm_lora(write(tmp_path, tensors), LLAMA).problems == (said,)


def test_layers_and_embeddings_are_read_and_scales_by_the_root_of_the_rank(tmp_path):
    name = "base_model.model.embed_tokens.lora_embedding"
    embedding = {f"{name}_A": A.clone(), f"{name}_B": B.clone()}
    layer = {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B}
    assert vllm_lora(write(tmp_path, embedding | layer, use_rslora=True), LLAMA) == VllmLora((), 8)


@pytest.mark.parametrize(("rank", "least"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_the_least_rank_that_the_server_must_allow(tmp_path, rank, least):
    tensors = {"base_model.model.q.lora_A.weight": torch.zeros(rank, 2), "base_model.model.q.lora_B.weight": torch.zeros(2, rank)}
    assert vllm_lora(write(tmp_path, tensors, r=rank), LLAMA).max_rank == least


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "vLLM's GPT2LMHeadModel takes no LoRA"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "vLLM serves no LoRA on encoder-decoder models",
        ),
    ],
)
def test_models_on_which_vllm_serves_no_lora(tmp_path, base, said):
    assert vllm_lora(write(tmp_path), base).problems == (said,)


def test_a_folder_without_its_files_is_none(tmp_path):
    assert vllm_lora(tmp_path, LLAMA).problems == ("there is no adapter_config.json",)
    write(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert vllm_lora(tmp_path, LLAMA).problems == ("there is no adapter_model.safetensors",)


def test_a_base_in_four_bits_is_held_so_by_the_server_too():
    command = VllmLora((), 64).command("org/base", "poet", "./poet", quantised=True)
    assert command.startswith("vllm serve org/base --quantization bitsandbytes --enable-lora --max-lora-rank 64 ")
