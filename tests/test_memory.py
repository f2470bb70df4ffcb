"""Memory: activations as autograd saves them, and the bytes of weights, logits and cache."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from shaping import QUIET, method_of, model_of, write_base

from tasks.memory import HEAD_TOKENS, Work, activations, kept, key_value_cache, logits, weights
from tasks.shapes import of_folder, of_parameters

pytestmark = QUIET


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3", "layer_norm", "qlora"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_block_keeps_what_autograd_saves(base, tmp_path, method, padded):
    import torch

    rows, length = (2, 24) if padded else (1, 48)
    model, spec = model_of(base, method, "sft", tmp_path)
    body = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    ids = torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, length - 4 :] = 0 if padded else 1
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, object] = {}
    inside = []
    for layer in (body.layers[1], body.layers[2]):
        layer.register_forward_pre_hook(lambda *_: inside.append(sum(t.untyped_storage().nbytes() for t in saved.values())))

    def pack(tensor):
        key = tensor.untyped_storage().data_ptr()
        if key not in own and tensor.is_floating_point():
            saved.setdefault(key, tensor)  # held, so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        body(input_ids=ids, attention_mask=mask, use_cache=False)
    found = kept(of_folder(base.folder), spec, Work(rows=rows, longest=length))
    expected = 4 * (rows * length * (found.small + found.wide) + found.constant)
    assert expected == pytest.approx(inside[1] - inside[0], rel=0.03)  # but for a scale or two per token


def test_activations_of_small_blocks_cost_more_on_a_heap_and_large_ones_what_they_are():
    shape, spec = of_parameters(1e9), method_of("layer_norm")
    small, large = (Work(rows=rows, longest=256, checkpointing=False) for rows in (1, 8))
    per_token = kept(shape, spec, small)
    exact = 4 * shape.layers * 256 * (per_token.small + per_token.wide)
    assert activations(shape, spec, small) == int(1.1 * exact)
    padded = kept(shape, spec, large)
    assert activations(shape, spec, large) == 4 * shape.layers * 8 * 256 * (padded.small + padded.wide)


def test_checkpointing_keeps_a_boundary_per_block_and_is_left_off_for_prefixes():
    shape = of_parameters(135e6)
    off, on = (Work(rows=4, longest=512, checkpointing=again) for again in (False, True))
    lora, prefix = method_of("lora"), method_of("prefix_tuning")
    assert activations(shape, lora, on) < 0.2 * activations(shape, lora, off)
    assert activations(shape, prefix, on) == activations(shape, prefix, off)


def test_a_4_bit_base_takes_half_a_byte_a_weight_and_its_scales():
    shape = of_parameters(7e9)
    inside = sum(linear.inputs * linear.outputs for linear in shape.linears())
    outside = shape.parameters - inside
    assert weights(shape, device="cuda", quantised=True) == int(inside * (0.5 + 1 / 64 + 1 / 4096)) + 2 * outside


def test_the_key_value_cache_of_smollm2_is_46_kb_a_token_in_float32():
    assert key_value_cache(of_parameters(135e6), "cpu", 1) == 30 * 2 * 192 * 4


def test_the_heads_tiles_do_not_grow_with_the_batch():
    shape = of_parameters(135e6)
    sizes = {rows: logits(shape, Work(rows=rows, longest=256), "sft") for rows in (1, 16)}
    assert sizes == dict.fromkeys((1, 16), 8 * HEAD_TOKENS["cpu"] * 32768 * 4)
