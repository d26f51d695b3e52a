"""Patches of prepared cases: random, or on a labelled voxel; only what a patch needs is read from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Case(Protocol):
    """A prepared case."""

    @property
    def image(self) -> np.ndarray:
        """float32 (C, *axes)."""

    @property
    def label(self) -> np.ndarray | None:
        """Labels (*axes)."""

    @property
    def locations(self) -> np.ndarray:
        """int32 (n, 1 + axes): a label and the indices of a voxel that has it."""


def sample_patch(
    case: Case, patch_size: Sequence[int], generator: np.random.Generator, *, foreground: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a random patch out of a case.

    Args:
        case: Prepared, with a label.
        patch_size: Voxels along each axis. One entry less than the case has axes takes a slice across the first.
        generator: Draws the place.
        foreground: Centre it, as far as it fits, on a voxel of a labelled structure: the structure is drawn first,
            each with equal chance, so that small ones are seen. A case without any gives a random patch.

    Returns:
        The image (C, *patch_size), float32, and its labels (*patch_size). What lies outside of the case is 0. Both
        are copies that may be changed.
    """
    start, size = place_patch(case, patch_size, generator, foreground=foreground)
    if case.label is None:
        raise ValueError("a patch to train on needs a case with a label")
    image = cut(case.image, start, size)
    label = cut(case.label[None], start, size)[0]
    if len(size) > len(patch_size):
        return image[:, 0], label[0]
    return image, label


def place_patch(
    case: Case, patch_size: Sequence[int], generator: np.random.Generator, *, foreground: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw where a patch lies, as `sample_patch` does.

    Args:
        case: As for `sample_patch`, like the rest.
        patch_size: Voxels along each axis.
        generator: Draws the place.
        foreground: Centre it on a voxel of a labelled structure.

    Returns:
        The first index along each axis of the case, which may lie outside, and the length along each.
    """
    shape = case.image.shape[1:]
    size = (1,) * (len(shape) - len(patch_size)) + tuple(patch_size)
    centre = _labelled(case.locations, generator) if foreground else None
    start = []
    for axis, (length, extent) in enumerate(zip(size, shape, strict=True)):
        # where the patch is larger than the case, the case lies in its middle
        low, high = (0, extent - length) if extent >= length else ((extent - length) // 2,) * 2
        if centre is None:
            start.append(int(generator.integers(low, high + 1)))
        else:
            start.append(int(np.clip(centre[axis] - length // 2, low, high)))
    return tuple(start), size


def cut(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copy a box out of an array.

    Args:
        array: (C, *axes).
        start: The box's first index along each axis; may lie outside.
        size: Its length along each.

    Returns:
        (C, *size), 0 where the array has nothing.
    """
    box = np.zeros((len(array), *size), array.dtype)
    inside, there = [slice(None)], [slice(None)]
    for first, length, extent in zip(start, size, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, extent)
        if low >= high:
            return box
        inside.append(slice(low, high))
        there.append(slice(low - first, high - first))
    box[tuple(there)] = array[tuple(inside)]
    return box


def _labelled(locations: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """Draw a structure, then one of its voxels."""
    if len(locations) == 0:
        return None
    # sorted by label: each one's rows follow one another
    labels, first = np.unique(locations[:, 0], return_index=True)
    chosen = int(generator.integers(len(labels)))
    last = first[chosen + 1] if chosen + 1 < len(first) else len(locations)
    return np.asarray(locations[int(generator.integers(first[chosen], last)), 1:])
