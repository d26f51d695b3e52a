"""SSD along a route on GPUs as an operator that PyTorch knows; `run` is the operator as it is to be called."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.layout import empty_in_order, empty_sized
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.route import Route

INPUTS = 7


def _kernels(device: torch.device) -> ModuleType:
    return backends.kernels("mamba_kernels.ssd", device)


def _readings(B: Tensor, route: str, merge: str, widths: Sequence[int]) -> Readings:
    return Route(route, merge, tuple(widths) or None).readings(tuple(B.shape[2:-2]), B.device)


def _empty_out(x: Tensor, B: Tensor, concatenates: bool, dtype: torch.dtype) -> Tensor:
    """Return memory for the merged result, in the dimension order of x."""
    like = x[:, 0] if x.dim() == B.dim() else x
    heads = like.shape[-2] * (B.shape[1] if concatenates else 1)
    return empty_sized(like, (*like.shape[:-2], heads, like.shape[-1]), dtype)


@torch.library.custom_op("mamba_kernels::ssd_route", mutates_args=(), device_types=("cpu", "cuda"))
def registered_ssd_route(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    route: str,
    merge: str,
    widths: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """Return the merged result."""
    out = _kernels(x.device).forward_route(
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        dt_softplus,
        (dt_smallest, dt_largest),
        _readings(B, route, merge, widths),
        out_dtype,
    )
    ordered = _empty_out(x, B, merge == "concat", out_dtype)
    return out if out.stride() == ordered.stride() else ordered.copy_(out)


@torch.library.custom_op("mamba_kernels::ssd_route_backward", mutates_args=(), device_types=("cpu", "cuda"))
def registered_backward(
    grad_out: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    route: str,
    merge: str,
    widths: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C, D and dt_bias, empty for absent inputs."""
    return _kernels(x.device).backward_route(
        grad_out, x, dt, A, B, C, D, dt_bias, dt_softplus, (dt_smallest, dt_largest),
        _readings(B, route, merge, widths),
    )  # fmt: skip


@registered_ssd_route.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    route: str,
    merge: str,
    widths: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    return _empty_out(x, B, merge == "concat", out_dtype)


@registered_backward.register_fake
def _(
    grad_out: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    route: str,
    merge: str,
    widths: Sequence[int],
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if t is None else empty_in_order(t) for t in (x, dt, A, B, C, D, dt_bias))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:INPUTS])
    ctx.options = inputs[INPUTS:-1]
    # A result that nobody differentiates costs no gradient of zeros.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None) -> tuple:
    tensors = ctx.saved_tensors
    others = (None,) * (len(ctx.options) + 1)
    if grad_out is None:
        return (*(None,) * INPUTS, *others)
    gradients = _backward(grad_out, *tensors, *ctx.options)
    return (*(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), *others)


run = register_derivative(registered_ssd_route, _differentiate, setup_context=_setup_context)
_backward = refuse_second_derivative("ssd_route", registered_backward)
