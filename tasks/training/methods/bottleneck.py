# pyright: basic
"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751): a small module behind every sub-layer, and layer norms of its own.

A module maps h -> m, a non-linearity, m -> h, and adds its input (section 2.1).  It sits on the output of the sub-layer's last
projection, before the residual is added: behind attention and feed-forward part, and by the same rule behind the
cross-attention of a decoder, which the paper's models do not have.  Up starts at zero, so the model starts unchanged.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from torch.func import functional_call

from tasks.core.errors import SpecError
from tasks.training.methods.tuner import OwnLayer, OwnTuner, OwnType, dtype_of, is_linear, is_norm, plain, walk, widths

_INPUT = re.compile(r"w?(q|k|v)", re.IGNORECASE)
"""beginnings of the names of attention's inputs, queries, keys and values, in every family: q_proj, key, v_lin, Wqkv, ..."""
_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass
class BottleneckConfig(PeftConfig):
    """What PEFT keeps of a bottleneck adapter."""

    size: int = field(default=64, metadata={"help": "inner width m of a module"})
    activation: str = field(default="gelu", metadata={"help": "non-linearity between down and up: gelu, relu or silu"})
    norms: bool = field(default=True, metadata={"help": "train copies of the layer norms too"})
    target_modules: list[str] | set[str] | None = field(
        default=None, metadata={"help": "modules that get an adapter, norms included; found in the model's structure if None"}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained whole, a task's head for example"})

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.peft_type = OwnType.BOTTLENECK  # pyright: ignore[reportAttributeAccessIssue]
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: use one of {', '.join(_ACTIVATIONS)}")


def config(model: Any, method: Any, task_type: str) -> BottleneckConfig:  # noqa: ANN401
    """PEFT's configuration of `method`."""
    return BottleneckConfig(size=method.size, activation=method.activation, norms=method.norms, task_type=task_type)  # pyright: ignore[reportArgumentType]


class BottleneckLayer(OwnLayer):
    """A sub-layer's last module, and the bottleneck behind it."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_act", "bottleneck_up")
    bottleneck_down: Any
    bottleneck_act: Any
    bottleneck_up: Any

    def update_layer(self, adapter_name: str, config: BottleneckConfig, width: int) -> None:
        """Add a module that is the identity; down starts as torch's linear layers do."""
        up = nn.Linear(config.size, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        down = nn.Linear(width, config.size)
        self.add(
            adapter_name,
            {"bottleneck_down": down, "bottleneck_act": _ACTIVATIONS[config.activation](), "bottleneck_up": up},
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The module's output, adapted; of a tuple (a mixture of experts with its router's logits) the first member is."""
        result = self.base_layer(*args, **kwargs)
        name = self.single()
        if name is None:
            return result
        if isinstance(result, tuple):
            return (self._adapt(result[0], name), *result[1:])
        return self._adapt(result, name)

    def _adapt(self, x: torch.Tensor, name: str) -> torch.Tensor:
        down = self.bottleneck_down[name]
        inner = self.bottleneck_act[name](down(x.to(dtype_of(down))))
        return x + self.bottleneck_up[name](inner).to(x.dtype)


class NormLayer(OwnLayer):
    """A layer norm, and a trained copy of it for each adapter."""

    adapter_layer_names = ("bottleneck_norm",)
    bottleneck_norm: Any

    def update_layer(self, adapter_name: str, config: BottleneckConfig, width: int) -> None:
        """Add a copy."""
        self.add(adapter_name, {"bottleneck_norm": copy.deepcopy(self.base_layer)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The copy's output.  It trains in float32 and computes in the model's precision: in bfloat16 the start is exact."""
        name = self.single()
        if name is None:
            return self.base_layer(*args, **kwargs)
        norm, precision = self.bottleneck_norm[name], dtype_of(self.base_layer)
        if dtype_of(norm) == precision:
            return norm(*args, **kwargs)
        return functional_call(norm, {key: p.to(precision) for key, p in norm.named_parameters()}, args, kwargs)


class BottleneckModel(OwnTuner):
    """A model with bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = OwnLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:  # noqa: ANN401
        if peft_config.target_modules is None:
            names = places(self.model)
            if peft_config.norms:
                names += [name for name, module in walk(self.model) if is_norm(module)]
            peft_config.target_modules = set(names)
        return peft_config

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str  # noqa: ANN401
    ) -> None:  # fmt: skip
        base = plain(target)
        width = widths(base)[1] if is_linear(base) else self.model.config.get_text_config().hidden_size
        if isinstance(target, OwnLayer):
            target.update_layer(adapter_name, peft_config, width)  # pyright: ignore[reportCallIssue]
            return
        layer = (NormLayer if is_norm(base) else BottleneckLayer)(target)
        layer.update_layer(adapter_name, peft_config, width)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise SpecError(
            "method bottleneck: its modules are not linear, so no weight of the model can take them in; leave merge out and use "
            "the adapter as it is, or train with a method that merges, such as lora"
        )


def places(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the modules that end a sub-layer of `model`.  Raises SpecError where the structure does not tell.

    A layer is a member of a module list that holds attention.  Attention ends with its one projection to the model's width that
    makes no queries, keys or values; the feed-forward part, which is the rest of the layer, with the projection back to that
    width; a mixture of experts ends as a whole.
    """
    layers = list(_layers(model))
    hidden = model.config.get_text_config().hidden_size
    found = [_ends(layer, name, hidden) for name, layer in layers]
    if not found or not all(found):
        where = next((name for (name, _), ends in zip(layers, found, strict=True) if not ends), "the model")
        raise SpecError(
            f"method bottleneck: {where} of this {model.config.model_type} is not an attention part followed by a feed-forward "
            "part, as far as its structure tells, so there is no place for the modules; use lora or layer_norm"
        )
    return [name for ends in found for name in ends]


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Members of the outermost module lists in which some member holds attention; those without are yielded too, and fail."""
    module = plain(module)
    children = [(f"{name}.{key}" if name else key, plain(child)) for key, child in module.named_children()]
    if isinstance(module, nn.ModuleList) and any(_attends(inner) for _, child in children for _, inner in walk(child)):
        yield from children
        return
    for key, child in children:
        yield from _layers(child, key)


def _attends(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _ends(layer: nn.Module, name: str, hidden: int) -> list[str]:
    """Names of the last modules of the sub-layers of `layer`, in their order; none where it is built in another way."""
    attention, rest = _split(layer, name)
    experts = {key.rpartition(".")[0] for key, module in rest if _is_experts(module)}
    experts = {key for key in experts if not any(key.startswith(f"{other}.") for other in experts)}
    linear = [(key, module) for key, module in rest if is_linear(module) and not key.startswith(tuple(f"{e}." for e in experts))]
    back = _back(linear)
    if len(experts) == 1 and not linear:
        end, width = experts.pop(), hidden
    elif not experts and back:
        end, width = back[0], widths(back[1])[1]
    else:
        return []
    outputs = [
        [
            key
            for key, module in walk(part, at)
            if is_linear(module) and widths(module)[1] == width and not _INPUT.match(key.rpartition(".")[2])
        ]
        for at, part in attention
    ]
    if not outputs or any(len(found) != 1 for found in outputs):
        return []
    return [*(found[0] for found in outputs), end]


def _back(linear: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module] | None:
    """The projection of a feed-forward part back to the model's width: the others map that width to its input, or twice that."""
    fitting = [
        (name, back)
        for name, back in linear
        if len(linear) > 1
        and all(
            widths(module)[0] == widths(back)[1] and widths(module)[1] in (widths(back)[0], 2 * widths(back)[0])
            for _, module in linear
            if module is not back
        )
    ]
    return fitting[-1] if fitting else None


def _split(module: nn.Module, name: str) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]]:
    """The outermost attention modules inside `module`, and all modules outside of them."""
    attention: list[tuple[str, nn.Module]] = []
    rest: list[tuple[str, nn.Module]] = []
    for key, child in module.named_children():
        at, child = f"{name}.{key}", plain(child)
        if _attends(child):
            attention.append((at, child))
            continue
        rest.append((at, child))
        inner_attention, inner_rest = _split(child, at)
        attention += inner_attention
        rest += inner_rest
    return attention, rest


def _is_experts(module: nn.Module) -> bool:
    """Whether `module` holds several matrices: stacked in a parameter, or as a list of feed-forward parts."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return any(is_linear(inner) for _, inner in walk(module)) and not any(_attends(inner) for _, inner in walk(module))
    stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
    return stacked and not isinstance(module, nn.modules.conv._ConvNd)
