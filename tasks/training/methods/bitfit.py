# pyright: basic
"""BitFit (Ben Zaken et al., arXiv:2106.10199): train the biases.  An adapter holds what is added to each, zero at the start.

A model none of whose linear layers has a bias (Llama, T5) gets one on every linear layer.  The language-model head's own is left
alone, because the loss kernel reads it where it lies; the head of a task is trained whole, as with every method.
"""

import copy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn
from torch.func import functional_call

from tasks.core.errors import SpecError
from tasks.training.methods.tuner import HEADS, OwnLayer, OwnTuner, OwnType, is_linear, plain, walk, widths


@dataclass
class BitFitConfig(PeftConfig):
    """What PEFT keeps of a BitFit adapter."""

    target_modules: list[str] | set[str] | None = field(
        default=None, metadata={"help": "modules whose biases are trained; found in the model if None"}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained whole, a task's head for example"})

    def __post_init__(self) -> None:
        """Set the type."""
        super().__post_init__()
        self.peft_type = OwnType.BITFIT  # pyright: ignore[reportAttributeAccessIssue]


def config(model: Any, method: Any, task_type: str) -> BitFitConfig:  # noqa: ANN401
    """PEFT's configuration of `method`."""
    return BitFitConfig(task_type=task_type)  # pyright: ignore[reportArgumentType]


class BitFitLayer(OwnLayer):
    """A module, and what each adapter adds to its biases; those that it has not count as zero."""

    adapter_layer_names = ("bitfit_delta",)
    bitfit_delta: Any

    def __init__(self, base_layer: nn.Module) -> None:
        """Wrap `base_layer`, which has biases or is linear."""
        super().__init__(base_layer)
        self._before: dict[str, nn.Parameter | None] = {}

    def update_layer(self, adapter_name: str) -> None:
        """Add a zero for each bias."""
        base = self.base_layer
        shapes = {name: getattr(base, name).shape for name in _biases(base)} or {"bias": (widths(base)[1],)}
        deltas = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        self.add(adapter_name, {"bitfit_delta": nn.ParameterDict(deltas)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The module with its biases moved."""
        names = self.working()
        if not names:
            return self.base_layer(*args, **kwargs)
        moves = [self.bitfit_delta[name] for name in names]
        if is_linear(self.base_layer) or isinstance(self.base_layer, nn.LayerNorm):  # they add their bias last
            result = self.base_layer(*args, **kwargs)
            for move in moves:
                result = result + move["bias"].to(result.dtype)
            return result
        biases = {name: getattr(self.base_layer, name) for name in moves[0]}
        moved: dict[str, Any] = {name: sum((move[name].to(bias.dtype) for move in moves), bias) for name, bias in biases.items()}
        return functional_call(self.base_layer, moved, args, kwargs)

    @property
    def creates(self) -> bool:
        """Whether a merge makes a bias where there was none."""
        return self._before.get("bias", self.base_layer) is None or not (self._before or _biases(self.base_layer))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the biases, or make a bias of them.  `safe_merge` raises ValueError for one that is not finite."""
        base = self.base_layer
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bitfit_delta:
                continue
            for key, delta in self.bitfit_delta[name].items():
                old = getattr(base, key)
                self._before.setdefault(key, old)
                like = base.weight if old is None else old
                value = delta.detach() if old is None else old.detach() + delta.detach()
                value = value.to(like.dtype if like.is_floating_point() else value.dtype)
                if safe_merge and not bool(torch.isfinite(value).all()):
                    raise ValueError(f"adapter {name}: a merged bias is not finite; the adapter is damaged")
                setattr(base, key, nn.Parameter(value.clone(), requires_grad=False))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the very biases back that were there before."""
        for key, old in self._before.items():
            setattr(self.base_layer, key, old)
        self._before = {}
        self.merged_adapters.clear()


class BitFitModel(OwnTuner):
    """A model whose biases are trained."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:  # noqa: ANN401
        if peft_config.target_modules is None:
            peft_config.target_modules = set(places(self.model))
        return peft_config

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str  # noqa: ANN401
    ) -> None:  # fmt: skip
        if isinstance(target, BitFitLayer):
            target.update_layer(adapter_name)
            return
        layer = BitFitLayer(target)
        layer.update_layer(adapter_name)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        switches(self.model)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        new = switches(self.model) if merge else {}
        model: Any = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        for name, value in new.items():
            setattr(model.config, name, value)
        return model


def places(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the modules whose biases are trained.  Raises SpecError for biases that cannot be reached from outside."""
    if any(isinstance(module, nn.Conv1d) and module.groups > 1 for _, module in walk(model)):
        raise SpecError(
            f"method bitfit: {model.config.model_type} mixes tokens by a state space, whose kernels read the biases themselves, "
            "so they cannot be moved from outside; use layer_norm or full"
        )
    head = plain(model.get_output_embeddings()) if model.get_output_embeddings() is not None else None
    shared = {id(p) for p in head.parameters(recurse=False)} if head is not None else set()
    body = [(name, module) for name, module in walk(model) if module is not head and name.split(".")[0] not in HEADS]
    having = [(name, module) for name, module in body if any(id(getattr(module, bias)) not in shared for bias in _biases(module))]
    for name, module in having:
        if any(True for child in module.children() for _ in child.parameters()):
            raise SpecError(
                f"method bitfit: {name} ({type(module).__name__}) holds biases beside modules of its own, which cannot be moved "
                "from outside; use lora or layer_norm"
            )
    linear = [(name, module) for name, module in body if is_linear(module)]
    if not any(_biases(module) for _, module in linear):
        having += linear
    return [name for name, _ in having]


def switches(model: Any) -> dict[str, bool]:  # noqa: ANN401
    """The fields of the config of `model` that must change so that it declares the biases a merge adds.

    Found by building the model without memory under each choice of fields that speak of biases, and comparing the names of its
    weights.  Raises SpecError where no choice gives exactly those: the merged model would not load again.
    """
    added = {f"{name}.bias" for name, layer in model.named_modules() if isinstance(layer, BitFitLayer) and layer.creates}
    if not added:
        return {}
    base_config = model.config
    now = {f"{name}.{key}" for name, module in walk(model) for key, _ in module.named_parameters(recurse=False)}
    fields = {name: value for name, value in base_config.to_dict().items() if "bias" in name and isinstance(value, bool)}
    for count in range(1, len(fields) + 1):
        for chosen in combinations(sorted(fields), count):
            flipped = {name: not fields[name] for name in chosen}
            other = copy.deepcopy(base_config)
            for name, value in flipped.items():
                setattr(other, name, value)
            with torch.device("meta"):
                built = type(model)(other)
            if {name for name, _ in built.named_parameters(remove_duplicate=False)} == now | added:
                return flipped
    raise SpecError(
        f"method bitfit: the config of {base_config.model_type} has no switch for the biases that were added to its linear "
        "layers, so the merged model could not be loaded again; leave merge out and use the adapter as it is, or train with lora"
    )


def _biases(module: nn.Module) -> list[str]:
    """Names of the bias parameters that `module` itself holds."""
    return [name for name, _ in module.named_parameters(recurse=False) if name == "bias" or name.endswith("_bias")]
