"""Tiles: 16 channels times some steps of a tensor of any strides, copied to where vector instructions reach them.

A tile holds step after step, 16 lanes each. Tensors come as flat vectors with strides counted in elements, so that a
kernel is compiled once for all layouts. Steps may run backwards (a negative stride).
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from mamba_kernels.simd import LANES, load, store, transpose


def flat(x: Tensor | None, dtype: torch.dtype | None = None) -> np.ndarray:
    """Return the memory of ``x`` as one flat vector from its first element on; a single zero if it is None or empty.

    Args:
        x: A tensor on the CPU; the vector shares its memory.
        dtype: The dtype of the stand-in for None.
    """
    if x is None or x.numel() == 0:
        return torch.zeros(1, dtype=dtype if x is None else x.dtype).numpy()
    x = x.detach()
    if x.is_contiguous():
        return x.view(-1).numpy()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((span,), (1,)).numpy()


@numba.njit
def aligned(size: int, like: np.ndarray) -> np.ndarray:
    """Return an uninitialised vector whose start is on a cache line, so that no vector load crosses one."""
    raw = np.empty(size + 64, like.dtype)
    skip = (-(raw.ctypes.data // raw.itemsize)) % (64 // raw.itemsize)
    return raw[skip : skip + size]


@numba.njit
def _whole_blocks(steps: int, lanes: int, step_stride: int) -> int:
    """Return how many steps can be copied in blocks of 16 steps and 16 lanes: those whose steps are neighbours."""
    return steps // LANES * LANES if lanes == LANES and (step_stride == 1 or step_stride == -1) else 0


@numba.njit
def load_tile(
    tile: np.ndarray, steps: int, source: np.ndarray, start: int, lanes: int, lane_stride: int, step_stride: int
) -> None:
    """Fill a tile; lanes that the tensor does not have become 0."""
    if lane_stride == 1 and lanes == LANES:
        for t in range(steps):
            store(tile, t * LANES, load(source, start + t * step_stride))
        return
    done = _whole_blocks(steps, lanes, step_stride)
    back = LANES - 1 if step_stride < 0 else 0  # steps from the first of a block to the one that comes first in memory
    for t in range(0, done, LANES):
        place = start + (t + back) * step_stride
        transpose(source, place, lane_stride, tile, (t + back) * LANES, LANES * step_stride)
    for lane in range(lanes):
        place = start + lane * lane_stride
        for t in range(done, steps):
            tile[t * LANES + lane] = source[place + t * step_stride]
    for lane in range(lanes, LANES):
        for t in range(steps):
            tile[t * LANES + lane] = 0


@numba.njit
def store_tile(
    tile: np.ndarray, steps: int, target: np.ndarray, start: int, lanes: int, lane_stride: int, step_stride: int
) -> None:
    """Write a tile's lanes that the tensor has."""
    if lane_stride == 1 and lanes == LANES:
        for t in range(steps):
            store(target, start + t * step_stride, load(tile, t * LANES))
        return
    done = _whole_blocks(steps, lanes, step_stride)
    back = LANES - 1 if step_stride < 0 else 0
    for t in range(0, done, LANES):
        place = start + (t + back) * step_stride
        transpose(tile, (t + back) * LANES, LANES * step_stride, target, place, lane_stride)
    for lane in range(lanes):
        place = start + lane * lane_stride
        for t in range(done, steps):
            target[place + t * step_stride] = tile[t * LANES + lane]


@numba.njit
def load_rows(
    rows: np.ndarray, steps: int, width: int, source: np.ndarray, start: int, row_stride: int, step_stride: int
) -> None:
    """Fill ``rows`` (steps, width) from a (width, steps) part of a tensor."""
    if row_stride == 1:
        for t in range(steps):
            for n in range(width):
                rows[t * width + n] = source[start + t * step_stride + n]
        return
    for n in range(width):
        for t in range(steps):
            rows[t * width + n] = source[start + t * step_stride + n * row_stride]


@numba.njit
def store_rows(
    rows: np.ndarray, steps: int, width: int, target: np.ndarray, start: int, row_stride: int, step_stride: int
) -> None:
    """Write ``rows`` (steps, width) to a (width, steps) part of a tensor."""
    if row_stride == 1:
        for t in range(steps):
            for n in range(width):
                target[start + t * step_stride + n] = rows[t * width + n]
        return
    for n in range(width):
        for t in range(steps):
            target[start + t * step_stride + n * row_stride] = rows[t * width + n]
