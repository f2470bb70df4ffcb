# pyright: basic
"""What our own PEFT methods share: their types, a layer that keeps what is added per adapter, and a walk through a wrapped model.

One rule: an adapter that is off, or not there, leaves a module's output bit-equal.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

HEADS = ("score", "classifier", "qa_outputs")
"""heads of tasks: fresh, so trained whole by every method"""


class OwnType(str, enum.Enum):  # noqa: UP042  PEFT reads the name out of `str(member)`, which StrEnum shortens
    """Types beside those of `peft.PeftType`; a member is found in PEFT's tables by its text too, as a loaded file has it."""

    BOTTLENECK = "BOTTLENECK"
    BITFIT = "BITFIT"
    HEAD_TUNING = "HEAD_TUNING"
    SEQ2SEQ_PREFIX = "SEQ2SEQ_PREFIX"


def make_known(kind: OwnType, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Enter a method into PEFT's tables; `peft.utils.register_peft_method` takes members of PEFT's own enum only."""
    if PEFT_TYPE_TO_TUNER_MAPPING.get(kind, tuner) is not tuner:  # pyright: ignore[reportCallIssue, reportArgumentType]
        raise RuntimeError(f"this PEFT has a method {kind.value} of its own; give ours in tasks/training/methods another type")
    tables: list[tuple[dict[Any, Any], Any]] = [
        (PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, tuner.prefix),
    ]
    for table, value in tables:
        table[kind] = value


class OwnLayer(nn.Module, BaseTunerLayer):
    """A module and what each adapter adds to it, kept in module dictionaries by adapter name."""

    def __init__(self, base_layer: nn.Module) -> None:
        """Wrap `base_layer`, with no adapter yet."""
        super().__init__()
        self.base_layer: Any = base_layer
        self.merged_adapters = []
        self._active_adapter = []  # the tuner sets it after every injection
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())

    def add(self, adapter_name: str, parts: Mapping[str, nn.Module]) -> None:
        """Take in the parts of a new adapter, on the device and in the precision of the wrapped module."""
        like = next((p for p in self.base_layer.parameters() if p.is_floating_point()), None)
        device = next((p.device for p in self.base_layer.parameters()), None)
        for name, part in parts.items():
            if not any(p.is_meta for p in part.parameters()):
                part.to(device=device, dtype=like.dtype if like is not None else None)
            getattr(self, name)[adapter_name] = part

    def working(self) -> list[str]:
        """Adapters that change the output now: active ones that this layer has, while they are neither off nor merged."""
        if self.disable_adapters or self.merged:
            return []
        there = self._get_available_adapters()
        return [name for name in self.active_adapters if name in there]

    def single(self) -> str | None:
        """The adapter at work, None if there is none.  Raises ValueError for two: their order would be arbitrary."""
        names = self.working()
        if len(names) > 1:
            raise ValueError(f"{type(self).__name__}: adapters {', '.join(names)} are active together; activate one at a time")
        return names[0] if names else None

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; merged ones are taken out first, so that off is the bare module."""
        if not enabled and self.merged:
            self.unmerge()
        super().enable_adapters(enabled)


class OwnTuner(BaseTuner):
    """A tuner whose layers may wrap any module, a whole mixture of experts too."""

    def _replace_module(self, parent: Any, child_name: str, new_module: nn.Module, child: nn.Module) -> None:  # noqa: ANN401
        setattr(parent, child_name, new_module)  # PEFT would also copy a weight, which not every module has


def plain(module: nn.Module) -> nn.Module:
    """What a wrapper of PEFT or of ours wraps."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module  # pyright: ignore[reportReturnType]


def walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules, parents first, as if nothing was wrapped: a second adapter finds the places of the first."""
    module = plain(module)
    yield name, module
    for child, inner in module.named_children():
        yield from walk(inner, f"{name}.{child}" if name else child)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a matrix product: torch's Linear, also in 4 bits, or GPT-2's transposed kind; a router is none."""
    return isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is a layer norm (LayerNorm, RMSNorm and their like) with weights."""
    return type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None


def widths(linear: Any) -> tuple[int, int]:  # noqa: ANN401
    """Input and output width."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def dtype_of(module: Any) -> torch.dtype:  # noqa: ANN401
    """Precision of the first weight."""
    return next(module.parameters()).dtype
