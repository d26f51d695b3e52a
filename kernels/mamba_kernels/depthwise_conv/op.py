"""The depthwise convolution's public function: its checks, the registered operator, and the choice of what runs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.checks import (
    cast_for_autocast,
    require,
    require_activation,
    require_device,
    require_float,
    require_shape,
)
from mamba_kernels.depthwise_conv.reference import depthwise_conv_reference
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout

NAME = "depthwise_conv"


def _kernels(device: torch.device) -> ModuleType:
    return backends.kernels("mamba_kernels.depthwise_conv", device)


@per_layout
def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    for name, t in {"x": x, "weight": weight, "bias": bias}.items():
        if t is not None:
            require_float(NAME, name, t)
            require_device(NAME, name, t, x.device)
    require(
        x.dim() in (4, 5) and min(x.shape[1:]) >= 1,
        f"{NAME}: x must have shape (B, H, W, C) or (B, D, H, W, C), no size of the grid 0, got {tuple(x.shape)}",
        "put the channels last",
    )
    channels, rank = x.shape[-1], x.dim() - 2
    require(
        tuple(weight.shape) == (channels, *[3] * rank),
        f"{NAME}: weight must have shape (C, {', '.join(['3'] * rank)}) with C = {channels}, got {tuple(weight.shape)}",
        "pass one filter of 3 taps along each axis a channel; the weight of PyTorch's layer needs .squeeze(1)",
    )
    if bias is not None:
        require_shape(NAME, "bias", bias, (channels,), "(C,)")
    require_activation(NAME, activation)


@torch.library.custom_op("mamba_kernels::depthwise_conv", mutates_args=(), device_types=("cpu", "cuda"))
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return _kernels(x.device).forward(x, weight, bias, silu)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return empty_in_order(x)


@torch.library.custom_op("mamba_kernels::depthwise_conv_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _differentiate(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _kernels(x.device).backward(dy, x, weight, bias, silu)
    # An operator cannot return None: what has no gradient gets one of size 0.
    return dx, dweight, x.new_empty(0) if dbias is None else dbias


@_differentiate.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return empty_in_order(x), empty_in_order(weight), x.new_empty(0) if bias is None else empty_in_order(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _backward_operator(dy, x, weight, bias, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None


_operator = register_derivative(_convolve, _backward, setup_context=_save)
_backward_operator = refuse_second_derivative(NAME, _differentiate)
register_decomposition(_convolve)(depthwise_conv_reference)


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve each channel of a grid with its own filter of 3 taps along each axis, and apply an activation.

    The output has the grid's size; beyond its edges there are zeros. It is ``nn.Conv2d(C, C, 3, padding=1, groups=C)``
    on channels that come last, the convolution of VMamba's blocks. Arithmetic is float32, float64 where an input is.
    Tensors may have any strides; the output and each gradient are dense in the dimension order of their input. Under
    autocast x is cast to its dtype.

    Args:
        x: Input (B, H, W, C) or (B, D, H, W, C).
        weight: Filters (C, 3, 3) or (C, 3, 3, 3), the middle tap meeting the current cell.
        bias: Bias (C,).
        activation: None, "silu" or its other name "swish".
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output, in the shape and dtype of x.

    Raises:
        KernelInputError: If a shape, dtype, device or activation is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    _check(x, weight, bias, activation)
    x = cast_for_autocast(x)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    run = depthwise_conv_reference if chosen == "reference" else _operator
    return run(x, weight, bias, activation is not None)
