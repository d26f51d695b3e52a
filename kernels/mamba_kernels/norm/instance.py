"""The instance norm of large maps by PyTorch's own kernels: planes are cut, so that a whole GPU has work.

PyTorch gives each plane, one image's map of one channel, to one block of a GPU, and a 3-D network's finest maps are few
planes of millions of cells each. Here a plane is cut into equal parts, which are planes of their own to the kernels of
``torch.nn.SyncBatchNorm``; in between the parts' means and variances are put together (Chan, Golub and LeVeque 1979).

Dimensions in names: B batch, C channels, P planes (B * C), K parts of a plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCKS = 1024  # parts that keep all processors of a large GPU busy
_CELLS = 2048  # of a part, at least: a block has 512 threads


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, slope: float = 1.0) -> Tensor:
    """Normalise each image's and channel's own map, scale and shift it, and apply a leaky ReLU.

    PyTorch's instance norm returns a view, and autograd takes the gradient of an activation in place on a view through
    four copies of the map; here it is in place on no view.

    Args:
        x: The maps (B, C, *spatial).
        weight: (C,) scales.
        bias: (C,) shifts.
        eps: Added to the variance.
        slope: Of the leaky ReLU where its input is negative; 1 leaves it out.

    Returns:
        The maps, with the shape and dtype of ``x``, contiguous.
    """
    parts = _parts_on(x)
    if parts > 1:
        y = _InParts.apply(x.contiguous(), weight, bias, eps, parts)
        return y if slope == 1 else F.leaky_relu_(y, slope)
    batch = x.shape[0]
    maps = x.reshape(1, batch * x.shape[1], *x.shape[2:])
    y = F.batch_norm(maps, None, None, weight.repeat(batch), bias.repeat(batch), training=True, eps=eps)
    return (y if slope == 1 else F.leaky_relu_(y, slope)).view(x.shape)


def _parts_on(x: Tensor) -> int:
    """Return into how many parts the planes of ``x`` are cut where it lies."""
    # what is compiled becomes Inductor's kernels
    if not x.is_cuda or torch.compiler.is_compiling():
        return 1
    return plane_parts(x.shape[0] * x.shape[1], x[0, 0].numel())


@lru_cache
def plane_parts(planes: int, cells: int) -> int:
    """Return into how many equal parts planes of so many cells are cut."""
    wanted, most = -(-_BLOCKS // planes), cells // _CELLS
    if wanted == 1 or most < 2:
        return 1
    wanted = min(wanted, most)
    numbers = (*range(wanted, min(4 * wanted, most) + 1), *range(wanted, 1, -1))
    return next((parts for parts in numbers if cells % parts == 0), 1)


class _InParts(torch.autograd.Function):
    ops: Any = torch
    """Where the kernels are; a CPU has none, and a test puts others there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> Tensor:
        ops, batch = _InParts.ops, x.shape[0]
        cut = x.view(1, batch * x.shape[1] * parts, -1)
        mean_PK, scale_PK = (each.view(-1, parts) for each in ops.batch_norm_stats(cut, eps))
        mean_P = mean_PK.mean(1)
        # scale^-2 is a part's variance plus eps
        scale_P = (scale_PK.pow(-2).mean(1) + mean_PK.var(1, correction=0)).rsqrt()
        # the kernels take half-precision maps with vectors in float32
        gain_P, shift_P = (vector.to(mean_P.dtype).repeat(batch) for vector in (weight, bias))
        y = ops.batch_norm_elemt(cut, *_each(parts, gain_P, shift_P, mean_P, scale_P), eps)
        ctx.save_for_backward(x, weight, mean_P, scale_P)
        ctx.parts = parts
        # no view, so that the activation may be in place
        return torch.ops.aten._unsafe_view(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_P, scale_P = ctx.saved_tensors
        ops, parts, (batch, channels) = _InParts.ops, ctx.parts, x.shape[:2]
        cut = x.view(1, batch * channels * parts, -1)
        dy_cut = dy.contiguous().view(cut.shape)
        given = (dy_cut, cut, *_each(parts, mean_P, scale_P, weight.to(mean_P.dtype).repeat(batch)))
        # of dy, and of dy * (x - mean)
        sums = ops.batch_norm_backward_reduce(*given, True, False, False)[:2]
        sum_P, product_P = (each.view(-1, parts).sum(1) for each in sums)
        cells = torch.full((1,), x[0, 0].numel(), dtype=torch.int32, device=x.device)
        dx = ops.batch_norm_backward_elemt(*given, *_each(parts, sum_P, product_P), cells)
        dweight, dbias = (each.view(batch, channels).sum(0) for each in (product_P * scale_P, sum_P))
        return dx.view(x.shape), dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


def _each(parts: int, *numbers_P: Tensor) -> Iterator[Tensor]:
    """Yield the planes' numbers for each of their parts."""
    return (numbers[:, None].expand(-1, parts).reshape(-1) for numbers in numbers_P)
