"""Resampling between grids: nearest, linear and cubic splines, slice by slice where one axis has a low resolution.

Voxels are boxes that fill the volume: both grids cover the same space, and beyond its border the last value goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mamba_datasets.cores import usable_cores
from mamba_datasets.errors import DataError
from mamba_datasets.volumes.plan import Resampling

# From this ratio of spacings on, an axis has a low resolution.
ANISOTROPY = 3.0
# Volumes of so many voxels are resampled by several threads, which leave Python's lock alone most of the time.
_LARGE, _THREADS = 2**22, 8
# Beyond so many voxels the border of a spline is not felt in float32.
_MARGIN = 12


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the voxels along each axis after resampling from one spacing to another, at least one."""
    return tuple(max(1, round(size * step / aim)) for size, step, aim in zip(shape, spacing, target, strict=True))


def separate_axis(spacing: Sequence[float], target: Sequence[float], separate: bool | None) -> int | None:
    """Return the axis of low resolution that is resampled separately.

    Args:
        spacing: Before.
        target: After.
        separate: Whether there shall be one; None asks the anisotropy of the two.

    Returns:
        The axis; None where there is none, or no single one.
    """
    if len(spacing) < 3 or separate is False:
        return None
    for steps in (spacing, target):
        if separate or max(steps) / min(steps) > ANISOTROPY:
            coarse = [axis for axis, step in enumerate(steps) if step == max(steps)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def resample(
    array: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    how: Resampling,
) -> np.ndarray:
    """Resample values.

    Args:
        array: Values (*axes).
        shape: Voxels along each axis afterwards.
        spacing: Of the array.
        target: Afterwards; with `spacing` it decides whether an axis is separate.
        how: The orders.

    Returns:
        float32 of this shape.
    """
    array = np.asarray(array, np.float32)
    separate = separate_axis(spacing, target, how.separate_z)
    # splines are products of one-dimensional ones: an axis at a time, those that shrink first
    for axis in sorted(range(array.ndim), key=lambda axis: shape[axis] / array.shape[axis]):
        array = _along(array, axis, shape[axis], how.order_z if axis == separate else how.order)
    return array


def resample_labels(
    labels: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    how: Resampling,
) -> np.ndarray:
    """Resample labels: each by itself as 0 and 1, and the highest wins, of equals the lowest label.

    Args:
        labels: Integers (*axes).
        shape: Voxels along each axis afterwards.
        spacing: Of the labels.
        target: Afterwards.
        how: The orders.

    Returns:
        Labels of the same type and this shape; no label that was not there before.
    """
    if labels.shape == tuple(shape):
        return np.ascontiguousarray(labels)
    best = np.full(shape, -np.inf, np.float32)
    found = np.zeros(shape, labels.dtype)
    for label in np.unique(labels):
        keep_best(resample(labels == label, shape, spacing, target, how), label, best, found)
    return found


def keep_best(scores: np.ndarray, label: int, best: np.ndarray, labels: np.ndarray) -> None:
    """Write a label where its scores are higher than the best so far, and remember these.

    Args:
        scores: Of the label (*axes).
        label: The label.
        best: The highest scores so far; changed.
        labels: Whose they are; changed.
    """
    better = scores > best
    np.copyto(best, scores, where=better)
    labels[better] = label


def _along(array: np.ndarray, axis: int, size: int, order: int) -> np.ndarray:
    """Resample along one axis, a plane of the others' at a time."""
    before = array.shape[axis]
    if before == size:
        return array
    indices, weights = _taps(before, size, order)
    result = np.empty((*array.shape[:axis], size, *array.shape[axis + 1 :]), np.float32)
    # planes that hold the axis, each small enough for a processor's cache
    across = 1 if axis == 0 else 0
    flat = array.ndim < 3
    sources, targets = (given[None] if flat else np.moveaxis(given, across, 0) for given in (array, result))
    within = axis if flat or axis == 0 else axis - 1

    def fill(planes: range) -> None:
        for place in planes:
            source = _coefficients(sources[place], within) if order > 1 else sources[place]
            total = 0
            for index, weight in zip(indices, weights, strict=True):
                total = total + source.take(index, within) * (weight[:, None] if within == 0 else weight)
            targets[place][...] = total

    threads = min(_THREADS, usable_cores()) if result.size >= _LARGE else 1
    if threads == 1:
        fill(range(len(sources)))
        return result
    with ThreadPoolExecutor(threads) as executor:
        for _ in executor.map(fill, [range(first, len(sources), threads) for first in range(threads)]):
            pass
    return result


def _taps(before: int, size: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that each new one is made of and their weights, each (taps, size)."""
    places = (np.arange(size) + 0.5) * (before / size) - 0.5
    if order == 0:
        nearest = np.floor(np.clip(places, 0, before - 1) + 0.5).astype(np.int64)
        return nearest[None], np.ones((1, size), np.float32)
    if order == 1:
        places = np.clip(places, 0, before - 1)
    low = np.floor(places)
    share = places - low
    if order == 1:
        indices = low + np.arange(2)[:, None]
        return np.minimum(indices, before - 1).astype(np.int64), np.stack([1 - share, share]).astype(np.float32)
    rest = 1 - share
    weights = [rest**3, 4 - 6 * share**2 + 3 * share**3, 4 - 6 * rest**2 + 3 * rest**3, share**3]
    indices = low + np.arange(-1, 3)[:, None] + _MARGIN
    return indices.astype(np.int64), (np.stack(weights) / 6).astype(np.float32)


def _coefficients(plane: np.ndarray, axis: int) -> np.ndarray:
    """Return a cubic spline's coefficients along an axis, with a margin in which the outermost value goes on."""
    try:
        from scipy import ndimage
    except ImportError:
        remedy = "pip install 'mamba-apps[medical]'"
        raise DataError("resampling", "order 3", "scipy is not installed", remedy) from None
    margins = [(_MARGIN, _MARGIN) if other == axis else (0, 0) for other in range(plane.ndim)]
    padded = np.pad(plane, margins, mode="edge")
    return np.asarray(ndimage.spline_filter1d(padded, 3, axis, np.float32, mode="nearest"))
