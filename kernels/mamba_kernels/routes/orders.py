"""The orders themselves: which cell of the flattened grid is read at each step.

Every function takes the grid's shape and returns, for each reading, the positions in the row-major flattened grid in
the order in which they are read.
"""

from __future__ import annotations

import math

import numpy as np


def forward(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the row-major order: the last axis is the fastest."""
    return [np.arange(math.prod(shape))]


def bidirectional(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the row-major order and its reverse."""
    return _with_reverses(forward(shape))


def cross(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return, from the last axis to the first, the order in which that axis is the fastest; then their reverses."""
    cells = np.arange(math.prod(shape)).reshape(shape)
    return _with_reverses([np.moveaxis(cells, axis, -1).reshape(-1) for axis in reversed(range(len(shape)))])


def snake(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the boustrophedon order: the path through each slice is the last one's, walked backwards."""
    path = np.zeros(1, dtype=np.int64)
    for size in reversed(shape):
        slices = np.arange(size)[:, None] * path.size + path
        slices[1::2] = slices[1::2, ::-1]
        path = slices.reshape(-1)
    return [path]


def windowed(shape: tuple[int, ...], window: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order window after window, row-major in each, and the window's number at every step (int32).

    Args:
        shape: The grid.
        window: The window's size along each axis; the last windows of an axis it does not divide are smaller.
    """
    number = np.zeros(shape, dtype=np.int64)
    for axis, (size, width) in enumerate(zip(shape, window, strict=True)):
        along = (np.arange(size) // width).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        number = number * -(-size // width) + along
    # A stable sort by window leaves the cells of each in row-major order.
    order = np.argsort(number.reshape(-1), kind="stable")
    return order, number.reshape(-1)[order].astype(np.int32)


def _with_reverses(paths: list[np.ndarray]) -> list[np.ndarray]:
    return paths + [path[::-1] for path in paths]
