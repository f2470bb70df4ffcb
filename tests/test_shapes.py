"""Shapes: parameters counted as torch counts them, from files, from a config alone, and under any wrapper."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from shaping import QUIET, TinyBase, model_of, write_base

from tasks.core.errors import DataError, MachineError, SpecError
from tasks.methods import METHODS
from tasks.shapes import Shape, of_embedded, of_folder, trained

pytestmark = QUIET
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
def bases(tmp_path_factory) -> dict[str, TinyBase]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: write_base(root, kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind in KINDS for method in METHODS if method not in NOT_FOR[kind]]
)
def test_trained_parameters_are_counted_as_torch_counts_them(bases, tmp_path, kind, method):
    stage = "sft" if "sft" in METHODS[method].learning_rate else "reward"
    model, spec = model_of(bases[kind], method, stage, tmp_path)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(of_folder(bases[kind].folder), spec, stage) == counted


@pytest.mark.parametrize("method", ["lora", "full", "prefix_tuning"])
def test_a_reward_model_trains_its_head_beside(bases, tmp_path, method):
    model, spec = model_of(bases["llama"], method, "reward", tmp_path)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(of_folder(bases["llama"].folder), spec, "reward") == counted


def test_a_shape_from_a_config_alone_is_that_of_the_files(bases):
    import json

    folder = bases["llama"].folder
    whole, alone = of_folder(folder), Shape.of(json.loads((folder / "config.json").read_text()))
    assert {tensor.name: tensor.shape for tensor in whole.tensors} == {tensor.name: tensor.shape for tensor in alone.tensors}
    assert (alone.parameters, alone.stored, alone.gated, alone.rms) == (whole.parameters, whole.stored, True, True)


def test_the_preflights_shape_is_that_of_the_files_under_any_wrapper(bases, tmp_path):
    from tasks.training.preflight import shape_of

    whole = of_folder(bases["llama"].folder)
    for method in ("full", "lora", "qlora", "ia3", "bottleneck", "bitfit", "layer_norm", "prompt_tuning", "prefix_tuning"):
        model, _ = model_of(bases["llama"], method, "sft", tmp_path)
        found = {tensor.name: tensor.shape for tensor in shape_of(model).tensors}
        assert found == {tensor.name: tensor.shape for tensor in whole.tensors}, method


def test_the_embedded_models_shape_is_that_of_smollm2():
    try:
        shape = of_embedded()
    except MachineError:
        pytest.skip("the package of the embedded model is not installed")
    assert (shape.parameters, shape.hidden, shape.layers, shape.keys) == (134_515_008, 576, 30, 192)


def test_a_folder_without_a_model_and_a_config_without_widths_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no readable config\.json here"):
        of_folder(tmp_path)
    with pytest.raises(SpecError, match="no width, layers or heads under a known name"):
        Shape.of({"model_type": "strange"})
