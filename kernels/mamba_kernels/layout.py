"""Memory layout shared by the operators: results have the dimension order of the input they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_kernels.memo import per_layout


def dimension_order(x: Tensor) -> list[int]:
    """Return the dimensions of ``x`` from the slowest to the fastest in memory.

    Ties, size-1 and broadcast (stride 0) dimensions keep their logical place as far as the others allow.
    """
    return list(_order(x))


@per_layout
def _order(x: Tensor) -> tuple[int, ...]:
    shape, stride = x.shape, x.stride()
    order: list[int] = []
    for dim in range(len(shape)):
        place = len(order)
        if stride[dim] != 0 and shape[dim] != 1:
            # Walk left past every dimension that is faster in memory; broadcast ones are stepped over with them.
            for i in range(len(order) - 1, -1, -1):
                other = order[i]
                if stride[other] == 0 or shape[other] == 1:
                    continue
                if stride[other] < stride[dim]:
                    place = i
                else:
                    break
        order.insert(place, dim)
    return tuple(order)


def empty_in_order(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised dense tensor with the shape and dimension order of ``x``.

    Args:
        x: The tensor whose shape, device and dimension order the result takes; it may be expanded, permuted or sliced.
        dtype: The result's dtype; None for that of ``x``.
    """
    if x.is_contiguous():
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.empty_strided(x.shape, _dense_stride(x), dtype=dtype or x.dtype, device=x.device)


def empty_sized(x: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised dense tensor of other ``sizes`` than ``x``, on its device and in its dimension order."""
    order = dimension_order(x)
    out = torch.empty([sizes[dim] for dim in order], dtype=dtype, device=x.device)
    return out.permute([order.index(dim) for dim in range(x.dim())])


@per_layout
def _dense_stride(x: Tensor) -> tuple[int, ...]:
    stride = [0] * x.dim()
    step = 1
    for dim in reversed(dimension_order(x)):
        stride[dim] = step
        step *= max(int(x.shape[dim]), 1) if isinstance(x.shape[dim], int) else x.shape[dim]
    return tuple(stride)


def in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return ``x`` dense with its dimensions in ``order``, slowest first; differentiable, a copy only where needed."""
    if x.is_contiguous() and list(order) == list(range(x.dim())):
        return x
    inverse = [order.index(dim) for dim in range(x.dim())]
    return x.permute(list(order)).contiguous().permute(inverse)


def in_order_of(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` dense in the dimension order of ``like``; differentiable, a copy only where the order differs."""
    return in_order(x, dimension_order(like))
