# pyright: basic
"""Prefixes of an encoder-decoder model, one on each side: z = [PREFIX; x; PREFIX'; y] (section 4 of arXiv:2101.00190, and
arXiv:2110.07602), as keys and values before those of every layer's self-attention.

PEFT's prefix tuning puts vectors into the decoder's cache, and an encoder has none; here attention itself is given them, so both
sides work alike, with and without a cache.  They have no position: a relative bias (T5) of theirs is zero.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.core.errors import SpecError
from tasks.methods import PrefixTuning, PTuningV2
from tasks.training.methods.tuner import OwnLayer, OwnTuner, OwnType, plain, walk, widths

_ATTENTION = "alignflow_prefix"
"""our function among those that transformers' models may attend by"""
_WORKS_WITH = ("eager", "sdpa")
_PARTS = "prefix_states"
_WEIGHTS = "adapter_model.safetensors"


@dataclass
class Seq2SeqPrefixConfig(PeftConfig):
    """What PEFT keeps of the two prefixes."""

    length: int = field(default=20, metadata={"help": "keys and values per layer"})
    hidden: int | None = field(
        default=None, metadata={"help": "inner width of the MLP of each side that computes them; None: they are trained directly"}
    )
    target_modules: list[str] | set[str] | None = field(
        default=None, metadata={"help": "self-attention modules; found in the model's structure if None"}
    )
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained whole, a task's head for example"})

    def __post_init__(self) -> None:
        """Set the type."""
        super().__post_init__()
        self.peft_type = OwnType.SEQ2SEQ_PREFIX  # pyright: ignore[reportAttributeAccessIssue]


def config(method: PrefixTuning | PTuningV2, task_type: str) -> Seq2SeqPrefixConfig:
    """PEFT's configuration of `method`."""
    hidden = method.hidden if isinstance(method, PrefixTuning) else None
    return Seq2SeqPrefixConfig(length=method.length, hidden=hidden, task_type=task_type)  # pyright: ignore[reportArgumentType]


class Direct(nn.Module):
    """Keys and values of one layer; P: length, W: width of all heads."""

    def __init__(self, length: int, width: int) -> None:
        """Start as PEFT's do, normal with deviation 1."""
        super().__init__()
        self.key = nn.Parameter(torch.randn(length, width))
        self.value = nn.Parameter(torch.randn(length, width))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, W) each."""
        return self.key, self.value


class Trunk(nn.Module):
    """What the layers of one side share of its MLP: P' and the first, non-linear layer (section 4.3 of arXiv:2101.00190)."""

    def __init__(self, length: int, width: int, hidden: int) -> None:
        """`width`: of an entry of P'."""
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.inner = nn.Linear(width, hidden)

    def forward(self) -> Tensor:
        """(P, hidden)."""
        return torch.tanh(self.inner(self.embedding))


class Computed(nn.Module):
    """Keys and values of one layer as its rows of the MLP's second matrix yield them."""

    def __init__(self, trunk: Trunk, hidden: int, width: int, *, owner: bool) -> None:
        """`owner`: one layer of each side holds the trunk that all of them read."""
        super().__init__()
        if owner:
            self.trunk = trunk
        self._shared = (trunk,)  # in a tuple, so that it is nobody's module twice
        self.out = nn.Linear(hidden, 2 * width)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (P, W) each."""
        key_PW, value_PW = self.out(self._shared[0]()).chunk(2, dim=-1)
        return key_PW, value_PW


class PrefixedAttention(OwnLayer):
    """Self-attention of one layer, and the keys and values each adapter puts first."""

    adapter_layer_names = (_PARTS,)
    prefix_states: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The module's own forward, attending by `attend`."""
        name, base = self.single(), self.base_layer
        if name is None:
            return base(*args, **kwargs)
        own = base.config
        under = own._attn_implementation or "eager"
        if under not in _WORKS_WITH:
            raise SpecError(f"prefixes: attention {under} cannot take keys from outside; load the model with sdpa or eager")
        base.config = copy.copy(own)
        base.config._attn_implementation_internal = _ATTENTION
        try:
            return base(*args, prefix=self.prefix_states[name](), under=under, **kwargs)
        finally:
            base.config = own


def attend(
    module: nn.Module,
    query_BHSD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    mask_BHST: Tensor | None,
    *,
    prefix: tuple[Tensor, Tensor],
    under: str,
    position_bias: Tensor | None = None,
    **more: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    """Attention `under`, over a prefix of keys and values that every query sees and that has no position bias.

    prefix: keys and values, (P, H x D) each.
    """
    heads, width = key_BHTD.shape[1], key_BHTD.shape[3]
    key_HPD, value_HPD = (x.view(len(x), heads, width).transpose(0, 1).to(key_BHTD) for x in prefix)
    before, (rows, asked, there) = key_HPD.shape[1], (len(query_BHSD), query_BHSD.shape[2], key_BHTD.shape[2])
    if mask_BHST is None and asked > 1 and getattr(module, "is_causal", False):  # left out where the kernel would know better
        seen_ST = torch.ones(asked, there, dtype=torch.bool, device=query_BHSD.device).tril(there - asked)
        hidden_ST = torch.zeros_like(seen_ST, dtype=query_BHSD.dtype)
        mask_BHST = hidden_ST.masked_fill(~seen_ST, torch.finfo(query_BHSD.dtype).min)[None, None]
    if mask_BHST is not None:
        mask_BHST = nn.functional.pad(mask_BHST, (before, 0), value=mask_BHST.dtype == torch.bool)
    if position_bias is not None:
        more["position_bias"] = nn.functional.pad(position_bias, (before, 0))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    function = eager if under == "eager" else ALL_ATTENTION_FUNCTIONS[under]
    key = torch.cat([key_HPD.expand(rows, -1, -1, -1), key_BHTD], dim=2)
    value = torch.cat([value_HPD.expand(rows, -1, -1, -1), value_BHTD], dim=2)
    return function(module, query_BHSD, key, value, mask_BHST, **more)


class Seq2SeqPrefixModel(OwnTuner):
    """An encoder-decoder model with a prefix on each side."""

    prefix = _PARTS
    tuner_layer_cls = PrefixedAttention

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:  # noqa: ANN401
        if peft_config.target_modules is None:
            peft_config.target_modules = set(places(self.model))
        return peft_config

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str  # noqa: ANN401
    ) -> None:  # fmt: skip
        layer = target if isinstance(target, PrefixedAttention) else PrefixedAttention(target)
        width = widths(_keys(plain(target)))[1]
        if peft_config.hidden is None:
            part = Direct(peft_config.length, width)
        else:
            trunks: dict[tuple[str, bool], Trunk] = vars(self).setdefault("_trunks", {})
            side = (adapter_name, _in_encoder(current_key))
            if owner := side not in trunks:
                trunks[side] = Trunk(peft_config.length, width, peft_config.hidden)
            part = Computed(trunks[side], peft_config.hidden, width, owner=owner)
        layer.add(adapter_name, {_PARTS: part})
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise SpecError(
            "method prefix_tuning: its keys and values belong to no token, so no weight yields them; leave merge out and use the "
            "adapter as it is, or train with a method that merges, such as lora"
        )


def places(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the self-attention modules of encoder and decoder.  Raises SpecError where the structure does not tell."""
    found = [
        name
        for name, module in walk(model)
        if type(module).__name__.endswith("Attention") and _keys(module) is not None and hasattr(module, "config")
        if not any(word in name.lower() for word in ("encdec", "encoder_attn", "cross"))
    ]
    sides = {_in_encoder(name) for name in found}
    if sides != {True, False}:
        raise SpecError(
            f"method prefix_tuning: the self-attention of encoder and decoder is not found in {model.config.model_type}; use "
            "lora or prompt_tuning"
        )
    return found


def _keys(attention: Any) -> Any:  # noqa: ANN401
    found = getattr(attention, "k", None) or getattr(attention, "k_proj", None)
    return plain(found) if isinstance(found, nn.Module) else None


def _in_encoder(name: str) -> bool:
    return "encoder" in name.split(".")


def write(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the keys and values, whatever computed them; and the head, if there is one."""
    from tasks.training.methods.builder import write_peft  # known.py, which models.py needs, knows this module

    write_peft(model, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if config["hidden"] is None:
        return
    weights = {name: value for name, value in load_file(folder / _WEIGHTS).items() if f".{_PARTS}." not in name}
    for name, module in model.named_modules():
        if isinstance(module, PrefixedAttention):
            with torch.no_grad():
                key_PW, value_PW = module.prefix_states["default"]()
            weights[f"{name}.{_PARTS}.key"] = key_PW.cpu().contiguous()
            weights[f"{name}.{_PARTS}.value"] = value_PW.cpu().contiguous()
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    path.write_text(json.dumps({**config, "hidden": None}))


AttentionInterface.register(_ATTENTION, attend)
