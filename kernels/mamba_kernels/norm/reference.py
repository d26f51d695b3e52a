"""The norms in plain PyTorch: the definition the fast paths are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of


def _standardise(x: Tensor, eps: float, centred: bool) -> Tensor:
    if centred:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = x * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    centred: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the norm of the sum of ``x`` and ``residual``, and the sum; differentiable any number of times.

    The arguments are those of `rms_norm` and, where ``centred``, `layer_norm`, already checked.
    """
    added = x.to(compute_dtype(x, weight, bias, residual))
    if residual is not None:
        added = added + residual.to(added.dtype)
    out = _affine(_standardise(added, eps, centred), weight, bias).to(out_dtype)
    return in_order_of(out, x), x if residual is None else in_order_of(added.to(residual.dtype), residual)


def gated_rms_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    """Return the gated norm; the arguments are those of `gated_rms_norm`, already checked."""
    dtype = compute_dtype(x, weight, bias, z)
    out = x.to(dtype)
    gate = None if z is None else F.silu(z.to(dtype))
    if gate is not None and not norm_before_gate:
        out = out * gate
    out = _standardise(out.unflatten(-1, (-1, group_size)), eps, centred=False).flatten(-2)
    out = _affine(out, weight, bias)
    if gate is not None and norm_before_gate:
        out = out * gate
    return in_order_of(out.to(x.dtype), x)
