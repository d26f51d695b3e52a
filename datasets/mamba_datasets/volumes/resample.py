"""Resampling between grids: splines of any order, slice by slice where one axis has a low resolution.

Voxels are boxes that fill the volume: both grids cover the same space, and beyond its border the last value goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.plan import Resampling

# From this ratio of spacings on, an axis has a low resolution.
ANISOTROPY = 3.0


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
    array = np.ascontiguousarray(array, np.float32)
    if array.shape == tuple(shape):
        return array
    axis = separate_axis(spacing, target, how.separate_z)
    if axis is None:
        return _interpolate(array, tuple(shape), how.order)
    slices = np.moveaxis(array, axis, 0)
    inner = tuple(size for other, size in enumerate(shape) if other != axis)
    resized = np.empty((len(slices), *inner), np.float32)
    for number, plane in enumerate(slices):
        resized[number] = _interpolate(np.ascontiguousarray(plane), inner, how.order)
    return np.moveaxis(_along_first(resized, shape[axis], how.order_z), 0, axis)


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
        weight = resample((labels == label).astype(np.float32), shape, spacing, target, how)
        better = weight > best
        best[better] = weight[better]
        found[better] = label
    return found


def _interpolate(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    if array.shape == shape:
        return array
    if order > 1:
        return _spline(array, shape, order)
    for axis, size in enumerate(shape):
        array = np.moveaxis(_along_first(np.moveaxis(array, axis, 0), size, order), 0, axis)
    return np.ascontiguousarray(array)


def _along_first(array: np.ndarray, size: int, order: int) -> np.ndarray:
    """Resample along the first axis only."""
    before = array.shape[0]
    if before == size:
        return array
    if order > 1:
        return _spline(np.ascontiguousarray(array), (size, *array.shape[1:]), order)
    # in float64: the coordinates of a million voxels keep their fraction
    places = np.clip((np.arange(size) + 0.5) * (before / size) - 0.5, 0, before - 1)
    if order == 0:
        return array[np.floor(places + 0.5).astype(np.int64)]
    low = np.minimum(np.floor(places).astype(np.int64), max(before - 2, 0))
    share = (places - low).astype(np.float32).reshape(-1, *(1,) * (array.ndim - 1))
    result = array[low]
    result *= 1 - share
    result += share * array[np.minimum(low + 1, before - 1)]
    return result


def _spline(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    try:
        from scipy import ndimage
    except ImportError:
        remedy = "pip install 'mamba-apps[medical]'"
        raise DataError("resampling", f"order {order}", "scipy is not installed", remedy) from None
    factors = [after / before for after, before in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array, factors, np.float32, order=order, mode="nearest", grid_mode=True)
