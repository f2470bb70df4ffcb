# pyright: basic
"""LoRA layers that multiply straight into the base layer's output: PEFT's own numbers, without its temporaries.

PEFT computes y + lora_B(lora_A(x)) * scaling, which takes three tensors as large as y, forward and backward.  Only plain LoRA
in one precision on a frozen linear layer is taken over; whatever else a layer may have is left to PEFT.
"""

import ctypes
from functools import cache
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable


def lean(model: torch.nn.Module) -> int:
    """Have the plain LoRA layers of `model` compute lean from now on, whichever adapter is active; returns how many there are."""
    layers = [module for module in model.modules() if type(module) is Linear and type(module.base_layer) is torch.nn.Linear]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def give_back(device: torch.device) -> None:
    """Return the heap's free blocks to the system, on a CPU with glibc: activations leave holes that later ones do not fill."""
    trim = _trim()
    if device.type == "cpu" and trim:
        trim(0)


@cache
def _trim() -> Any:  # noqa: ANN401  a function of the C library, or None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc, or no such thing as the process's own library
        return None


def _forward(self: Linear, x: Tensor, *more: Any, **named: Any) -> Tensor:  # noqa: ANN401  a layer's
    name = _taken_over(self, x) if not more and not named else None
    if name is None:
        return Linear.forward(self, x, *more, **named)
    base = self.base_layer
    found = _Lean.apply(x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
    return found  # pyright: ignore[reportReturnType]


def _taken_over(layer: Linear, x: Tensor) -> str | None:
    """The adapter that `x` passes through lean; None where PEFT must see to it."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or (name := active[0]) not in layer.lora_A:
        return None
    if name in layer.lora_variant or layer.lora_bias[name] or torch.is_autocast_enabled(x.device.type):
        return None
    dropout: Any = layer.lora_dropout[name]
    if layer.training and not isinstance(dropout, torch.nn.Identity) and dropout.p:
        return None
    base: Any = layer.base_layer
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    kinds = {x.dtype, base.weight.dtype, layer.lora_A[name].weight.dtype, layer.lora_B[name].weight.dtype}
    hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    return name if frozen and len(kinds) == 1 and not hooked else None


class _Lean(torch.autograd.Function):
    """x W' + b + scaling (x A') B', with gradients for x, A and B.  N: positions of all rows, R: rank, I and O: sides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Any, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:  # noqa: ANN401
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ down_RI.T
        y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, up_OR.T, alpha=scaling)
        ctx.save_for_backward(x, weight_OI, down_RI, up_OR, low_NR)
        ctx.scaling = scaling
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight_OI, down_RI, up_OR, low_NR = ctx.saved_tensors
        g_NO = gradient.reshape(-1, gradient.shape[-1])
        wants_x, wants_down, wants_up = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        g_x = g_down = g_up = None
        if wants_up:
            g_up = (g_NO.T @ low_NR).mul_(ctx.scaling)
        if wants_x or wants_down:
            g_NR = (g_NO @ up_OR).mul_(ctx.scaling)
            if wants_down:
                g_down = g_NR.T @ x.reshape(-1, x.shape[-1])
            if wants_x:
                g_x = (g_NO @ weight_OI).addmm_(g_NR, down_RI).view(x.shape)
        return g_x, None, None, g_down, g_up, None
