"""RMS norm and layer norm of a residual stream: the public functions, their checks and the registered operator."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.checks import FLOATS, compute_dtype, require, require_device, require_float, require_shape
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import dimension_order, empty_in_order, in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.norm.reference import norm_reference


def kernels_on(device: torch.device) -> ModuleType:
    """Return the module of the norms' kernels for ``device``."""
    return backends.kernels("mamba_kernels.norm", device)


@per_layout
def check_norm(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, **like_x: Tensor | None) -> None:
    """Check what all norms have in common; ``like_x`` are inputs of the shape of x."""
    for name, t in {"x": x, "weight": weight, "bias": bias, **like_x}.items():
        if t is not None:
            require_float(op, name, t)
            require_device(op, name, t, x.device)
    require(
        x.dim() >= 1 and x.shape[-1] >= 1,
        f"{op}: x must have shape (..., D) with D >= 1, got {tuple(x.shape)}",
        "put the dimension to be normalised last",
    )
    require_shape(op, "weight", weight, x.shape[-1:], "(D,)")
    if bias is not None:
        require_shape(op, "bias", bias, x.shape[-1:], "(D,)")
    for name, t in like_x.items():
        if t is not None:
            require_shape(op, name, t, x.shape, "the shape of x")
    require(eps >= 0, f"{op}: eps must not be negative, got {eps}", "pass a small number such as 1e-5")


@torch.library.custom_op("mamba_kernels::add_norm", mutates_args=(), device_types=("cpu", "cuda"))
def _add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centred: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return kernels_on(x.device).add_norm(x, weight, bias, residual, eps, centred, out_dtype)


@_add_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centred: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return empty_in_order(x, out_dtype), x.new_empty(0) if residual is None else empty_in_order(residual)


@torch.library.custom_op("mamba_kernels::add_norm_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _add_norm_backward(
    dout: Tensor,
    dadded: Tensor | None,
    added: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels_on(added.device).add_norm_backward(
        dout, dadded, added, weight, bias, eps, centred, x_dtype, residual_dtype
    )


@_add_norm_backward.register_fake
def _(
    dout: Tensor,
    dadded: Tensor | None,
    added: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dresidual = weight.new_empty(0) if residual_dtype is None else empty_in_order(added, residual_dtype)
    dbias = weight.new_empty(0) if bias is None else empty_in_order(bias)
    return empty_in_order(added, x_dtype), dresidual, empty_in_order(weight), dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, ctx.eps, ctx.centred, ctx.out_dtype = inputs
    # A sum that nobody uses then costs no gradient of zeros.
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias is not None
    ctx.layouts = [None if t is None else (t.dtype, dimension_order(t)) for t in (x, residual)]
    ctx.save_for_backward(x if residual is None else output[1], weight, bias)


def _backward(ctx: Any, dout: Tensor | None, dadded: Tensor | None) -> tuple[Tensor | None, ...]:
    added, weight, bias = ctx.saved_tensors
    (x_dtype, x_order), residual_layout = ctx.layouts
    if dout is None:
        dout = torch.zeros_like(added, dtype=ctx.out_dtype)
    apart = None if residual_layout is None or residual_layout[0] == x_dtype else residual_layout[0]
    dadded = None if residual_layout is None else dadded
    dx, dresidual, dweight, dbias = _backward_operator(
        dout, dadded, added, weight, bias, ctx.eps, ctx.centred, x_dtype, apart
    )
    if residual_layout is not None:
        dresidual = in_order(dx if apart is None else dresidual, residual_layout[1])
    dx = in_order(dx, x_order)
    return dx, dweight, dbias if ctx.has_bias else None, None if residual_layout is None else dresidual, *[None] * 3


_operator = register_derivative(_add_norm, _backward, setup_context=_save)
_backward_operator = refuse_second_derivative("rms_norm and layer_norm", _add_norm_backward)


@register_decomposition(_add_norm)
def _decompose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centred: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    out, added = norm_reference(x, weight, bias, residual, eps, centred, out_dtype)
    return out, x.new_empty(0) if residual is None else added


def _normalise(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    prenorm: bool,
    residual_in_fp32: bool,
    out_dtype: torch.dtype | None,
    backend: str | None,
    centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    check_norm(op, x, weight, bias, eps, residual=residual)
    require(
        out_dtype is None or out_dtype in FLOATS,
        f"{op}: out_dtype must be a real floating point dtype, got {out_dtype}",
        "pass torch.float32, torch.bfloat16, torch.float16 or None",
    )
    chosen = backends.choose(op, x.device, backend, has_triton=True)
    run = norm_reference if chosen == "reference" else _operator
    out, added = run(x, weight, bias, residual, float(eps), centred, out_dtype or x.dtype)
    if not prenorm:
        return out
    if residual is None:
        added = x.to(compute_dtype(x)) if residual_in_fp32 else x
    return out, added


def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide the sum of x and a residual by its root mean square along the last dimension, scale and shift.

    s = x + residual, out = s / sqrt(mean(s^2) + eps) weight + bias. Follows mamba-ssm's ``rms_norm_fn``. Arithmetic is
    float32, float64 where an input is; the output and each gradient are dense in the dimension order of their input.

    Args:
        x: Input (..., D).
        weight: Scale (D,).
        bias: Shift (D,).
        residual: Added to x before the norm (..., D); its dtype may be wider than x's.
        eps: Added to the mean square, at least 0.
        prenorm: Whether to return the sum too, as the next block's residual.
        residual_in_fp32: Whether the sum is returned in float32 where no residual came in; otherwise it has the
            residual's dtype, or that of x.
        out_dtype: The output's dtype; that of x if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (..., D), or under ``prenorm`` the pair of it and the sum.

    Raises:
        KernelInputError: If a shape, dtype, device or eps is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    return _normalise(
        "rms_norm", x, weight, bias, residual, eps, prenorm, residual_in_fp32, out_dtype, backend, centred=False
    )


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Standardise the sum of x and a residual along the last dimension, scale and shift.

    s = x + residual, out = (s - mean(s)) / sqrt(var(s) + eps) weight + bias, with the biased variance. Follows
    mamba-ssm's ``layer_norm_fn``. Arguments, result and errors are those of `rms_norm`.

    Args:
        x: Input (..., D).
        weight: Scale (D,).
        bias: Shift (D,).
        residual: Added to x before the norm (..., D).
        eps: Added to the variance, at least 0.
        prenorm: Whether to return the sum too.
        residual_in_fp32: Whether the sum is returned in float32 where no residual came in.
        out_dtype: The output's dtype; that of x if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (..., D), or under ``prenorm`` the pair of it and the sum.

    Raises:
        KernelInputError: If a shape, dtype, device or eps is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    return _normalise(
        "layer_norm", x, weight, bias, residual, eps, prenorm, residual_in_fp32, out_dtype, backend, centred=True
    )
