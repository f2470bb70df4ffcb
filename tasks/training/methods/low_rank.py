# pyright: basic
"""LoRA and its relatives.  They differ in scale, in what they start from, and in how fast B learns; all rest as a plain LoRA.

PiSSA and OLoRA take their start out of the weights, W = W_rest + s B0 A0, so that the model answers as before.  At rest the
change is written against the untouched weights, s (B A - B0 A0), which is a LoRA of twice the rank.
"""

import json
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from tasks.core.errors import DataError, SpecError
from tasks.methods import LoraPlus, RsLora
from tasks.training.methods.builder import Builder, adapted, peft, write_peft
from tasks.training.models import PEFT_TASKS, WEIGHTS, Loaded
from tasks.training.vision_models import untrained

_WEIGHTS_ONLY = ("dora", "pissa", "olora", "loftq")
"""methods that look into a weight, and so need it as a matrix"""
_START = "alignflow_start"
"""attribute of a model whose base was changed by the start: parameter name -> its value at the start"""


def config(model: Any, method: Any, task_type: str, **more: Any) -> LoraConfig:  # noqa: ANN401
    """PEFT's configuration of `method`."""
    targets = "all-linear" if isinstance(method.targets, str) else list(method.targets)
    if targets == "all-linear" and method.name in _WEIGHTS_ONLY and _fused_experts(model):
        raise SpecError(
            f"method {method.name}: {model.config.model_type} holds its experts as fused tensors, which take a plain update; "
            "name targets such as [q_proj, v_proj], or use lora"
        )
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        use_rslora=isinstance(method, RsLora),
        use_dora=method.name == "dora",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        bias="none",
        task_type=task_type,
        exclude_modules=untrained(model, method.targets),
        **more,
    )


def _fused_experts(model: Any) -> bool:  # noqa: ANN401
    return any(p.dim() == 3 and ".experts." in name for name, p in model.named_parameters())


def _started(init: str) -> Any:  # noqa: ANN401
    """A `wrap` whose adapters start as `init` and are taken out of the base."""

    def wrap(loaded: Loaded, method: Any, task: str) -> Any:  # noqa: ANN401
        if init == "olora" and any(isinstance(module, Conv1D) for module in loaded.model.modules()):
            raise SpecError(
                f"method olora: {loaded.model.config.model_type} stores its weights transposed, and PEFT's QR start cannot read "
                "them; use pissa"
            )
        model = adapted(loaded.model, config(loaded.model, method, PEFT_TASKS[task], init_lora_weights=init))
        setattr(model.peft_config["default"], "init_lora_weights", True)  # noqa: B010  a second adapter must not take anything out again
        start = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}
        setattr(model, _START, start)
        return model

    return wrap


def write_difference(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write what changed since the start as a plain LoRA of twice the rank; a continued adapter is one already."""
    write_peft(model, folder)
    if not (start := getattr(model, _START, None)):
        return
    weights = load_file(folder / WEIGHTS)
    for name, value in start.items():
        key = name.replace(".default.", ".")
        if ".lora_A." in name:
            weights[key] = torch.cat([weights[key], value.to(weights[key])], dim=0)
        else:
            weights[key] = torch.cat([weights[key], -value.to(weights[key])], dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "r": 2 * written["r"], "lora_alpha": 2 * written["lora_alpha"]}))


def _faster_b(model: Any, method: Any, args: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """AdamW whose learning rate for B is `ratio` times that for A (LoRA+, section 4)."""
    assert isinstance(method, LoraPlus)
    return create_loraplus_optimizer(
        model=model, optimizer_cls=torch.optim.AdamW, lr=args.learning_rate, loraplus_lr_ratio=method.ratio,
        loraplus_weight_decay=args.weight_decay, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )  # fmt: skip


def _loftq(loaded: Loaded, method: Any, task: str) -> Any:  # noqa: ANN401
    """LoRA on the 4-bit base, started as the best rank-r approximation of W - Q(W): algorithm 1 of arXiv:2310.08659 at T = 1."""
    model = adapted(loaded.model, config(loaded.model, method, PEFT_TASKS[task]))
    originals = _Weights(loaded.source)
    layers: list[tuple[str, Any]] = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in layers:
        quantised: Any = layer.get_base_layer().weight
        if not hasattr(quantised, "quant_state"):
            continue  # a layer that the model's family keeps in full precision, such as T5's wo, lost nothing
        held = dequantize_4bit(quantised.data, quantised.quant_state).float()
        original = originals.get(name.removeprefix("base_model.model.") + ".weight").to(held)
        sides = [side - held for side in (original, original.T) if side.shape == held.shape]  # GPT-2 stores weights transposed
        lost = min(sides, key=lambda side: float(side.norm()))
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        root = (s[: method.rank] / layer.scaling["default"]).sqrt()
        layer.lora_A["default"].weight.data.copy_(root[:, None] * v[: method.rank])
        layer.lora_B["default"].weight.data.copy_(u[:, : method.rank] * root)
    return model


class _Weights:
    """The weights of a model's folder, one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def get(self, name: str) -> torch.Tensor:
        """The tensor called `name`; the body may have been saved without its leading name, or as `model`."""
        rest = name.partition(".")[2]
        found = next((known for known in (name, rest, f"model.{rest}") if known in self._files), None)
        if found is None:
            raise DataError(
                f"{name}: the base's files hold no such weight, so loftq cannot see what quantisation lost; use qlora"
            )
        with safe_open(self._files[found], framework="pt") as file:
            return file.get_tensor(found)


PLAIN = Builder(peft(config))
PLUS = Builder(peft(config), optimizer=_faster_b)
PISSA = Builder(_started("pissa"), write=write_difference)
OLORA = Builder(_started("olora"), write=write_difference)
LOFTQ = Builder(_loftq)
