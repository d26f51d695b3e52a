"""The causal convolution of one input from both ends, each with its own filters, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.causal_conv1d.op import kernels_on
from mamba_kernels.causal_conv1d.reference import causal_conv1d_reference
from mamba_kernels.checks import (
    cast_for_autocast,
    require,
    require_activation,
    require_device,
    require_float,
    require_shape,
)
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout

NAME = "causal_conv1d_bidirectional"


@per_layout
def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    for name, t in {"x": x, "weight": weight, "bias": bias}.items():
        if t is not None:
            require_float(NAME, name, t)
            require_device(NAME, name, t, x.device)
    require(
        x.dim() == 3 and x.shape[1] > 0 and x.shape[2] > 0,
        f"{NAME}: x must have shape (B, D, L) with D, L >= 1, got {tuple(x.shape)}",
        "reshape x",
    )
    require(
        weight.dim() == 3 and tuple(weight.shape[:2]) == (2, x.shape[1]) and weight.shape[2] >= 1,
        f"{NAME}: weight must have shape (2, D, W) with D = {x.shape[1]} and W >= 1, got {tuple(weight.shape)}",
        "stack the filters of the reading from the start and of the one from the end",
    )
    if bias is not None:
        require_shape(NAME, "bias", bias, (2, x.shape[1]), "(2, D)")
    require_activation(NAME, activation)


def _empty(x: Tensor) -> Tensor:
    """Return an uninitialised (B, 2, D, L): one reading after the other, each in the dimension order of x."""
    return empty_in_order(x.expand(2, -1, -1, -1)).transpose(0, 1)


def causal_conv1d_bidirectional_reference(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve twice and stack; differentiable any number of times. The arguments are already checked."""
    readings = [
        causal_conv1d_reference(x, weight[k], None if bias is None else bias[k], silu=silu, reverse=k == 1)[0]
        for k in range(2)
    ]
    turned = x.stride(1) < x.stride(2)
    y_KBDL = torch.stack([y.mT for y in readings]).mT if turned else torch.stack(readings)
    return y_KBDL.transpose(0, 1)


@torch.library.custom_op(f"mamba_kernels::{NAME}", mutates_args=(), device_types=("cpu", "cuda"))
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = _empty(x)
    kernels_on(x.device).forward_both(x, weight, bias, silu, y)
    return y


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return _empty(x)


@torch.library.custom_op(f"mamba_kernels::{NAME}_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _differentiate(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = kernels_on(x.device).backward_both(dy, x, weight, bias, silu)
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
register_decomposition(_convolve)(causal_conv1d_bidirectional_reference)


def causal_conv1d_bidirectional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve each channel from both ends with a causal filter for each, reading x once.

    The same as `causal_conv1d` with ``weight[0]`` and with ``weight[1]`` under ``reverse``, stacked: what a Vision
    Mamba block does before its two scans. Under autocast x is cast to its dtype.

    Args:
        x: Input (B, D, L) in any strides, L >= 1.
        weight: The filters from the first position on, and those from the last (2, D, W); a filter's last tap meets the
            current position.
        bias: Their biases (2, D).
        activation: None, "silu" or its other name "swish".
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The outputs (B, 2, D, L) at the input's positions and in its dtype: one after the other in memory, each in its
        dimension order, so that a batch of two products with weights of their own can follow.

    Raises:
        KernelInputError: If a shape, dtype, device or activation is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    _check(x, weight, bias, activation)
    x = cast_for_autocast(x)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    run = causal_conv1d_bidirectional_reference if chosen == "reference" else _operator
    return run(x, weight, bias, activation is not None)
