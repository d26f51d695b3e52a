"""The causal convolution on a GPU: which kernels run, and what they write into."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.causal_conv1d import tiled, walk
from mamba_kernels.gpu import on_device_of_inputs, refuse_float64
from mamba_kernels.layout import empty_in_order


def _empty(like: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Return what takes results at all positions: zeros where there may be padding, otherwise uninitialised."""
    result = empty_in_order(like)
    return result if seq_idx is None else result.zero_()


def _channels_last(x: Tensor) -> Tensor:
    """Return ``x`` (B, D, L), copied if time is contiguous in it."""
    if not walk.is_length_last(x):
        return x
    return walk.copy_turned(x, torch.empty(x.mT.shape, dtype=x.dtype, device=x.device).mT)


@on_device_of_inputs
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    final: Tensor | None,
) -> Tensor:
    """Return the output in the dimension order of x, and fill ``final``, where given, with the final states."""
    refuse_float64("causal_conv1d", x, weight, bias, initial)
    y = _empty(x, seq_idx)
    if walk.fits(x, weight, seq_idx):
        walk.forward(x, weight, bias, initial, silu, reverse, y, final)
    else:
        tiled.forward(x, weight, bias, seq_idx, initial, silu, reverse, y, final)
    return y


@on_device_of_inputs
def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and the initial states, in the dtypes and dimension orders of these."""
    dx, dweight = _empty(x, seq_idx), empty_in_order(weight)
    dbias, dinitial = (None if t is None else empty_in_order(t) for t in (bias, initial))
    # Two copies with channels contiguous, and one back, take a fraction of what reading each tap anew for each takes.
    near = _channels_last(x) if seq_idx is None and weight.shape[1] in walk.WIDTHS else x
    if walk.fits(near, weight, seq_idx):
        near_dx = dx if near is x else torch.empty_like(near)
        walk.backward(
            _channels_last(dy), dfinal, near, weight, bias, initial, silu, reverse, near_dx, dweight, dbias, dinitial
        )  # fmt: skip
        if near_dx is not dx:
            walk.copy_turned(near_dx, dx)
    else:
        tiled.backward(dy, dfinal, x, weight, bias, seq_idx, initial, silu, reverse, dx, dweight, dbias, dinitial)
    return dx, dweight, dbias, dinitial


@on_device_of_inputs
def forward_both(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, y: Tensor) -> None:
    """Fill ``y`` (B, 2, D, L) with the convolution from either end, each with its own filters (2, D, W)."""
    refuse_float64("causal_conv1d_bidirectional", x, weight, bias)
    if walk.fits(x, weight, None):
        walk.forward(x, weight, bias, None, silu, False, y, None)
        return
    for k in range(2):
        bias_k = None if bias is None else bias[k]
        tiled.forward(x, weight[k], bias_k, None, None, silu, k == 1, y[:, k], None)


@on_device_of_inputs
def backward_both(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight and bias."""
    dx, dweight, dbias = empty_in_order(x), empty_in_order(weight), None if bias is None else empty_in_order(bias)
    near = _channels_last(x) if weight.shape[2] in walk.WIDTHS else x
    if walk.fits(near, weight, None):
        near_dx = dx if near is x else torch.empty_like(near)
        near_dy = dy
        if near is not x:
            near_dy = torch.empty(dy.mT.shape, dtype=dy.dtype, device=dy.device).mT
            for k in range(2):
                walk.copy_turned(dy[:, k], near_dy[:, k])
        walk.backward(near_dy, None, near, weight, bias, None, silu, False, near_dx, dweight, dbias, None)
        return dx if near_dx is dx else walk.copy_turned(near_dx, dx), dweight, dbias
    parts = [empty_in_order(x, torch.float32) for _ in range(2)]
    for k, part in enumerate(parts):
        bias_k, dbias_k = (None if t is None else t[k] for t in (bias, dbias))
        tiled.backward(
            dy[:, k], None, x, weight[k], bias_k, None, None, silu, k == 1, part, dweight[k], dbias_k, None
        )  # fmt: skip
    return dx.copy_(parts[0].add_(parts[1])), dweight, dbias
