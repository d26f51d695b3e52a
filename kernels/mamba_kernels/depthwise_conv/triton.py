"""The depthwise convolution on a GPU: how the walkers are laid over the grid, and the launches.

Everything follows from layouts and the GPU alone, and nothing is added atomically, so that results repeat bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_kernels.depthwise_conv.triton_kernels import depthwise_forward, depthwise_gradients
from mamba_kernels.gpu import (
    ceil_divide,
    launch_grid,
    multiprocessors,
    next_power_of_2,
    on_device_of_inputs,
    refuse_float64,
)
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.sums import add_parts

WARPS = 4
# Channels of a lane for images and for volumes, whose filters take three times the registers; rows read at once; warps
# a multiprocessor should have, rows of a part at least, and backward programs a multiprocessor.
FORWARD_LANE, BACKWARD_LANE = {2: 4, 3: 4}, {2: 2, 3: 2}
FORWARD_STEPS, BACKWARD_STEPS = {2: 4, 3: 1}, {2: 2, 3: 1}
WALKING_WARPS, LEAST_PART = 24, 8
BACKWARD_PROGRAMS = 4


class _Walk(NamedTuple):
    """How a grid is cut: tiles of cells of a row and channels, parts of its rows."""

    columns: int
    walkers: int
    blocks: int
    groups: int
    parts: int
    part_length: int
    sizes: tuple[int, ...]


def _cut(x: Tensor, lane: int) -> _Walk:
    batch, rows, *across, channels = x.shape
    columns = next(c for c in (128, 64, 32) if c == 32 or ceil_divide(channels, c) * c * 8 <= channels * 9)
    columns = min(columns, next_power_of_2(channels))
    walkers = 32 * WARPS * lane // columns
    blocks, count = ceil_divide(channels, columns), batch * math.prod(across)
    groups = ceil_divide(count, walkers)
    wanted = ceil_divide(multiprocessors(x.device) * WALKING_WARPS, max(1, groups * blocks * WARPS))
    part_length = ceil_divide(rows, max(1, min(wanted, rows // LEAST_PART)))
    middle, last = across if len(across) == 2 else (1, across[0])
    return _Walk(
        columns, walkers, blocks, groups, ceil_divide(rows, part_length), part_length, (count, rows, middle, last)
    )  # fmt: skip


def _strides(x: Tensor) -> tuple[int, ...]:
    return x.stride() if x.dim() == 5 else (*x.stride()[:2], 0, *x.stride()[2:])


@per_layout
def _plan_walk(x: Tensor, y: Tensor, has_bias: bool, silu: bool, flip: bool) -> Launch:
    rank = x.dim() - 2
    walk = _cut(x, FORWARD_LANE[rank])
    return Launch(
        depthwise_forward, launch_grid("depthwise_conv", walk.groups * walk.blocks, walk.parts),
        x.shape[-1], *walk.sizes, walk.part_length, *_strides(x), *_strides(y),
        ACROSS=3 ** (rank - 1), WALKERS=walk.walkers, COLUMNS=walk.columns, STEPS=FORWARD_STEPS[rank], SILU=silu,
        HAS_BIAS=has_bias, FLIP=flip, num_warps=WARPS,
    )  # fmt: skip


def _walk(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, y: Tensor, *, flip: bool = False) -> Tensor:
    """Fill ``y`` with the convolution, or with ``flip`` with that by the filters turned around, and return it."""
    if x.shape[0]:
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
        _plan_walk(x, y, bias is not None, silu, flip)(x, weight, weight if bias is None else bias, y)
    return y


class _Gradients(NamedTuple):
    """The launch of the kernel that sums the parameters' gradients, and how many programs leave parts."""

    launch: Launch
    programs: int


@per_layout
def _plan_gradients(x: Tensor, dy: Tensor, grad: Tensor, has_bias: bool, silu: bool) -> _Gradients:
    rank = x.dim() - 2
    walk = _cut(x, BACKWARD_LANE[rank])
    tasks = walk.groups * walk.parts
    most = max(1, multiprocessors(x.device) * BACKWARD_PROGRAMS // walk.blocks)
    programs = ceil_divide(tasks, ceil_divide(tasks, most))
    launch = Launch(
        depthwise_gradients, launch_grid("depthwise_conv", programs * walk.blocks),
        x.shape[-1], *walk.sizes, walk.part_length, walk.parts, *_strides(x), *_strides(dy), *_strides(grad),
        ACROSS=3 ** (rank - 1), WALKERS=walk.walkers, COLUMNS=walk.columns, STEPS=BACKWARD_STEPS[rank],
        SILU=silu, HAS_BIAS=has_bias, num_warps=WARPS,
    )  # fmt: skip
    return _Gradients(launch, programs)


@on_device_of_inputs
def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Return the output in the dimension order of x."""
    refuse_float64("depthwise_conv", x, weight, bias)
    return _walk(x, weight, bias, silu, empty_in_order(x))


@on_device_of_inputs
def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight and bias, in the dtypes and dimension orders of these."""
    dweight, dbias = empty_in_order(weight), None if bias is None else empty_in_order(bias)
    if x.shape[0] == 0:
        return empty_in_order(x), dweight.zero_(), None if dbias is None else dbias.zero_()
    grad = empty_in_order(x) if silu else dy
    launch, programs = _plan_gradients(x, dy, grad, bias is not None, silu)
    taps = weight[0].numel()
    parts = torch.empty(
        programs, 1, taps if bias is None else taps + 1, x.shape[-1], dtype=torch.float32, device=x.device
    )  # fmt: skip
    weight = weight.contiguous()
    launch(x, weight, weight if bias is None else bias.contiguous(), dy, grad, parts)
    dtaps = dweight if dweight.is_contiguous() else torch.empty_like(weight)
    add_parts(parts, dtaps.view(1, -1, taps), None if dbias is None else dbias[None])
    if dtaps is not dweight:
        dweight.copy_(dtaps)
    return _walk(grad, weight, None, False, empty_in_order(x), flip=True), dweight, dbias
