"""Estimates: parameters counted as torch counts them, activations as autograd saves them, and sums that hold."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import tiny

from tasks import estimate
from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.estimate import HEAD_TOKENS, Memory, Work
from tasks.methods import METHODS
from tasks.shapes import Shape, of_embedded, of_folder, of_parameters, trained
from tasks.train import RewardSpec, SftSpec
from tasks.workload import Reader, measured, steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern:RuntimeWarning"),
]
KINDS = ("llama", "gpt2", "opt", "mixtral")
MOE_ONLY = ("moe_experts", "moe_router")
NOT_FOR = {
    "gpt2": ("olora", *MOE_ONLY),
    "llama": MOE_ONLY,
    "opt": MOE_ONLY,
    "mixtral": ("dora", "pissa", "olora", "loftq", "ia3"),
}
"""methods that refuse a family"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Path, Path, Path]]:
    """kind -> policy, folder of weights, model cache"""
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for kind in KINDS:
        source = tiny.write_model(root / kind, kind=kind, layers=3)
        made[kind] = tiny.write_policy(root / f"{kind}-policy", root / "models", source, kind), source, root / "models"
    return made


def model_of(bases, kind: str, method: str, stage: str, work: Path):
    from tasks.training.adapters import start

    policy, _, models = bases[kind]
    spec = (RewardSpec if stage == "reward" else SftSpec).model_validate({"method": tiny.METHOD[method]})
    return start(policy, spec, Run(work, models, Execution(device="cpu"))).model, spec.method


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_trained_parameters_are_counted_as_torch_counts_them(bases, tmp_path, kind, method):
    if method in NOT_FOR[kind]:
        pytest.skip("refused for this family")
    stage = "sft" if "sft" in METHODS[method].learning_rate else "reward"
    model, spec = model_of(bases, kind, method, stage, tmp_path)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(of_folder(bases[kind][1]), spec, stage) == counted


@pytest.mark.parametrize("method", ["lora", "full", "prefix_tuning"])
def test_a_reward_model_trains_its_head_beside(bases, tmp_path, method):
    model, spec = model_of(bases, "llama", method, "reward", tmp_path)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(of_folder(bases["llama"][1]), spec, "reward") == counted


def test_a_shape_from_a_config_alone_is_that_of_the_files(bases):
    import json

    folder = bases["llama"][1]
    whole, alone = of_folder(folder), Shape.of(json.loads((folder / "config.json").read_text()))
    assert {tensor.name: tensor.shape for tensor in whole.tensors} == {tensor.name: tensor.shape for tensor in alone.tensors}
    assert (alone.parameters, alone.stored, alone.gated, alone.rms) == (whole.parameters, whole.stored, True, True)


def test_the_preflights_shape_is_that_of_the_files_under_any_wrapper(bases, tmp_path):
    from tasks.training.preflight import shape_of

    whole = of_folder(bases["llama"][1])
    for method in ("full", "lora", "qlora", "ia3", "bottleneck", "bitfit", "layer_norm", "prompt_tuning", "prefix_tuning"):
        model, _ = model_of(bases, "llama", method, "sft", tmp_path)
        found = {tensor.name: tensor.shape for tensor in shape_of(model).tensors}
        assert found == {tensor.name: tensor.shape for tensor in whole.tensors}, method


def test_the_embedded_models_shape_is_that_of_smollm2():
    try:
        shape = of_embedded()
    except MachineError:
        pytest.skip("the package of the embedded model is not installed")
    assert (shape.parameters, shape.hidden, shape.layers, shape.keys) == (134_515_008, 576, 30, 192)


@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3", "layer_norm", "qlora"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_block_keeps_what_autograd_saves(bases, tmp_path, method, padded):
    import torch

    rows, length = (2, 24) if padded else (1, 48)
    model, spec = model_of(bases, "llama", method, "sft", tmp_path)
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
    kept = estimate.kept(of_folder(bases["llama"][1]), spec, Work(rows=rows, longest=length))
    expected = 4 * (rows * length * (kept.small + kept.wide) + kept.constant)
    assert expected == pytest.approx(inside[1] - inside[0], rel=0.03)  # but for a scale or two per token


def test_activations_of_small_blocks_cost_more_on_a_heap_and_large_ones_what_they_are():
    shape, spec = of_parameters(1e9), tiny_method("layer_norm")
    small, large = (Work(rows=rows, longest=256, checkpointing=False) for rows in (1, 8))
    per_token = estimate.kept(shape, spec, small)
    exact = 4 * shape.layers * 256 * (per_token.small + per_token.wide)
    assert estimate.activations(shape, spec, small) == int(1.1 * exact)
    padded = estimate.kept(shape, spec, large)
    assert estimate.activations(shape, spec, large) == 4 * shape.layers * 8 * 256 * (padded.small + padded.wide)


def tiny_method(name: str):
    return SftSpec.model_validate({"method": tiny.METHOD[name]}).method


def test_checkpointing_keeps_a_boundary_per_block_and_is_left_off_for_prefixes():
    shape = of_parameters(135e6)
    off, on = (Work(rows=4, longest=512, checkpointing=again) for again in (False, True))
    lora, prefix = tiny_method("lora"), tiny_method("prefix_tuning")
    assert estimate.activations(shape, lora, on) < 0.2 * estimate.activations(shape, lora, off)
    assert estimate.activations(shape, prefix, on) == estimate.activations(shape, prefix, off)


def test_full_training_in_float32_is_16_bytes_a_weight_before_activations():
    shape = of_parameters(1e9)
    need = estimate.training(shape, tiny_method("full"), "reward", Work(rows=1, longest=16))
    assert need.weights == 4 * shape.parameters
    assert need.gradients + need.optimiser == 12 * (shape.parameters + shape.hidden)
    assert need.total == sum(vars(need).values())
    assert need.logits == 0


def test_a_4_bit_base_takes_half_a_byte_a_weight_and_its_scales():
    shape = of_parameters(7e9)
    inside = sum(linear.inputs * linear.outputs for linear in shape.linears())
    outside = shape.parameters - inside
    assert estimate.weights(shape, device="cuda", quantised=True) == int(inside * (0.5 + 1 / 64 + 1 / 4096)) + 2 * outside


def test_the_key_value_cache_of_smollm2_is_46_kb_a_token_in_float32():
    assert estimate.key_value_cache(of_parameters(135e6), "cpu", 1) == 30 * 2 * 192 * 4


def test_the_heads_tiles_do_not_grow_with_the_batch():
    shape = of_parameters(135e6)
    sizes = {rows: estimate.logits(shape, Work(rows=rows, longest=256), "sft") for rows in (1, 16)}
    assert sizes == dict.fromkeys((1, 16), 8 * HEAD_TOKENS["cpu"] * 32768 * 4)


def test_ppos_roles_share_one_base_under_adapters_and_have_four_without():
    shape, work = of_parameters(1e9), Work(device="cuda", rows=4, longest=512)
    lora = tiny_method("lora")
    shared = {role.name: role for role in estimate.ppo_roles(shape, lora, work, new=128)}
    apart = {role.name: role for role in estimate.ppo_roles(shape, tiny_method("full"), work, new=128)}
    assert list(shared) == list(apart) == ["policy", "value", "reward", "reference"]
    adapter, scalar = 4 * trained(shape, lora, "ppo"), 4 * trained(shape, lora, "reward")
    assert shared["reference"].memory == Memory(weights=adapter)
    assert shared["reward"].memory == Memory(weights=scalar)
    assert shared["value"].memory == Memory(weights=scalar, gradients=scalar, optimiser=2 * scalar)
    assert apart["reference"].memory.weights == apart["reward"].memory.weights == 2 * shape.parameters
    assert [role.shares_base for role in shared.values()] == [False, True, True, True]
    assert not any(role.shares_base for role in apart.values())
    assert sum(role.memory.weights for role in shared.values()) < 1.1 * 2 * shape.parameters
    assert sum(role.memory.weights for role in apart.values()) > 4 * 2 * shape.parameters


def test_ppo_needs_what_its_roles_need_together_and_a_reward_model_beside_in_full():
    shape, work, lora = of_parameters(1e9), Work(rows=4, longest=512), tiny_method("lora")
    roles = estimate.ppo_roles(shape, lora, work, new=128)
    assert estimate.ppo(shape, lora, work, new=128).total == sum(role.memory.total for role in roles)
    beside = {role.name: role for role in estimate.ppo_roles(shape, lora, work, new=128, judge=10**9)}
    assert (beside["reward"].memory, beside["reward"].shares_base) == (Memory(weights=10**9), False)
    assert [role.name for role in beside.values() if role.shares_base] == ["value", "reference"]


def test_the_larger_of_sampling_and_learning_counts():
    shape, work, lora = of_parameters(135e6), Work(rows=1, longest=256), tiny_method("lora")
    few, many = (estimate.ppo(shape, lora, work, new=200, written=rows) for rows in (1, 256))
    assert few.cache == 0
    assert few.logits == 3 * 4 * 200 * shape.vocabulary
    assert many.cache > 256 * 256 * shape.layers * 2 * shape.keys * 4
    assert many.logits == (4 + 3 * 8) * 256 * shape.vocabulary
    assert many.total > few.total
    grouped = [estimate.group(shape, lora, "grpo", work, new=200, written=rows) for rows in (1, 256)]
    assert [memory.cache for memory in grouped] == [0, many.cache]


def test_a_group_needs_its_reference_and_its_reward_model_beside_the_policy():
    shape, work, lora = of_parameters(135e6), Work(rows=4, longest=256), tiny_method("lora")
    alone = estimate.group(shape, lora, "rloo", work, new=64, written=4, pulls=False)
    assert alone == estimate.training(shape, lora, "rloo", work)
    whole = estimate.group(shape, lora, "rloo", work, new=64, written=4, judge=7)
    assert whole.total - alone.total == 7 + 4 * trained(shape, lora, "rloo")


def test_a_token_of_an_answer_costs_writing_telling_and_learning():
    shape, lora = of_parameters(135e6), tiny_method("lora")

    def of(stage, updates):
        return estimate.online_flops(
            shape, lora, stage, prompt=64, new=32, updates=updates, checkpointing=False, judged=True
        ) / (2 * shape.parameters)  # fmt: skip

    # written: 3; told: (3 or 2) + 1 passes of 3 tokens per answer token; learned: 2 passes of 3 tokens, for PPO twice
    assert of("ppo", 2) == pytest.approx(3 + 3 * 4 + 2 * 2 * 3 * 2, rel=0.05)
    assert of("grpo", 1) == pytest.approx(3 + 3 * 3 + 1 * 3 * 2, rel=0.05)


def test_the_largest_micro_batch_divides_the_batch_and_fits():
    assert estimate.largest(lambda rows: 10 * rows, 45, 8, 12) == 4
    assert estimate.largest(lambda rows: 10 * rows, 45, 8, 10) == 2
    assert estimate.largest(lambda rows: 10 * rows, 9, 8, 12) is None


def test_lora_multiplies_a_third_less_than_full_and_dpo_a_pass_more():
    shape = of_parameters(135e6)

    def of(method: str, stage, again: bool = False) -> float:
        return estimate.flops_per_token(shape, tiny_method(method), stage, 1, checkpointing=again)

    assert of("full", "sft") == pytest.approx(6 * shape.parameters, rel=1e-3)
    assert of("lora", "sft") == pytest.approx(4 * shape.parameters, rel=0.02)
    assert of("lora", "kto") == pytest.approx(8 * shape.parameters, rel=0.02)
    assert of("lora", "dpo") == of("lora", "sft", again=True) == pytest.approx(6 * shape.parameters, rel=0.02)


def test_tokens_are_counted_as_the_stage_reads_them(bases, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    folder = bases["llama"][1]
    reader, tokenizer = Reader.of(folder), AutoTokenizer.from_pretrained(folder)
    words = tiny.sentences(20)
    rows = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        for a, b in zip(words[::2], words[1::2], strict=True)
    ]
    lengths = [len(tokenizer.apply_chat_template(row)["input_ids"]) for row in rows]
    pq.write_table(
        pa.Table.from_pylist([{"id": str(i), "messages": row} for i, row in enumerate(rows)]), tmp_path / "train.parquet"
    )
    found = measured(reader, tmp_path / "train.parquet", "sft", 1000)
    assert found == (10, sum(lengths) / 10, max(lengths), "curated data")
    assert measured(reader, tmp_path / "train.parquet", "sft", 20).mean == sum(min(20, n) for n in lengths) / 10
    assert steps(10, global_batch=4, epochs=1.0, max_steps=None) == 3


def test_a_folder_without_a_model_and_a_config_without_widths_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no readable config\.json here"):
        of_folder(tmp_path)
    with pytest.raises(SpecError, match="no width, layers or heads under a known name"):
        Shape.of({"model_type": "strange"})
