# pyright: basic
"""Methods that train a few vectors of the model itself: (IA)3 and the layer norms."""

from typing import Any

from peft import IA3Config, LNTuningConfig
from transformers.pytorch_utils import Conv1D

from tasks.core.errors import SpecError
from tasks.training.methods.builder import Builder, peft

_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": (("k_proj", "v_proj"), ("down_proj",)),
    "gpt2": (("attn.c_attn",), ("mlp.c_proj",)),  # one projection for all three: its queries are scaled too
    "opt": (("k_proj", "v_proj"), ("fc2",)),
    "t5": (("k", "v"), ("wo",)),
    "bert": (("key", "value"), ("output.dense",)),
}
"""names of a family: keys and values, and what reads the inner feed-forward activation"""


def _ia3(model: Any, method: Any, task_type: str) -> IA3Config:  # noqa: ANN401
    """Keys, values, and the input of the layer that reads the inner activation (section 3.3 of arXiv:2205.05638)."""
    if any(p.dim() == 3 and ".experts." in name for name, p in model.named_parameters()):
        raise SpecError(
            f"method ia3: the experts of {model.config.model_type} are fused tensors, and nothing outside can scale their inner "
            "activation; use lora"
        )
    names = [name for name, _ in model.named_modules() if not name.endswith("attention.output.dense")]
    for outputs, inner in _PARTS.values():
        keys, inside = ([name for name in names for part in parts if _ends(name, part)] for parts in (outputs, inner))
        if keys and inside:
            transposed = any(isinstance(module, Conv1D) for module in model.modules())
            return IA3Config(
                target_modules=[*keys, *inside], feedforward_modules=inside, fan_in_fan_out=transposed, task_type=task_type
            )
    raise SpecError(
        f"method ia3: the layers of {model.config.model_type} have none of the names it knows "
        f"({', '.join(_PARTS)}); use lora or layer_norm"
    )


def _ends(name: str, part: str) -> bool:
    return name == part or name.endswith("." + part)


def _norms(model: Any, method: Any, task_type: str) -> LNTuningConfig:  # noqa: ANN401
    return LNTuningConfig(target_modules=norms(model), task_type=task_type)


def norms(model: Any) -> list[str]:  # noqa: ANN401
    """Names of all layer norms (LayerNorm, RMSNorm and their like) of `model`."""
    found = [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None
    ]
    if not found:
        raise SpecError(f"method layer_norm: {model.config.model_type} has no layer norm with weights; use bitfit or lora")
    return found


IA3 = Builder(peft(_ia3))
LAYER_NORM = Builder(peft(_norms))
