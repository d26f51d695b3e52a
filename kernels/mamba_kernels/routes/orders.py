"""The orders themselves: which cell of the flattened grid is read at each step.

Every function takes the grid's shape and returns, for each reading, the positions in the row-major flattened grid in
the order in which they are read, int64 on the CPU. They are computed by PyTorch, so that exporters can take them into
a graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward(shape: tuple[int, ...]) -> list[Tensor]:
    """Return the row-major order: the last axis is the fastest."""
    return [torch.arange(math.prod(shape), device="cpu")]


def bidirectional(shape: tuple[int, ...]) -> list[Tensor]:
    """Return the row-major order and its reverse."""
    return _with_reverses(forward(shape))


def axes(shape: tuple[int, ...]) -> list[Tensor]:
    """Return, from the last axis to the first, the order in which that axis is the fastest."""
    cells = forward(shape)[0].reshape(shape)
    return [cells.movedim(axis, -1).reshape(-1) for axis in reversed(range(len(shape)))]


def cross(shape: tuple[int, ...]) -> list[Tensor]:
    """Return the orders of `axes`, and their reverses."""
    return _with_reverses(axes(shape))


def snake(shape: tuple[int, ...]) -> list[Tensor]:
    """Return the boustrophedon order: the path through each slice is the last one's, walked backwards."""
    path = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size in reversed(shape):
        number = torch.arange(size, device="cpu")[:, None]
        path = (number * path.numel() + torch.where(number % 2 == 1, path.flip(0), path)).reshape(-1)
    return [path]


def windowed(shape: tuple[int, ...], window: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the order window after window, row-major in each, and the window's number at every step.

    Args:
        shape: The grid.
        window: The window's size along each axis; the last windows of an axis it does not divide are smaller.
    """
    number = torch.zeros(shape, dtype=torch.int64, device="cpu")
    for axis, (size, width) in enumerate(zip(shape, window, strict=True)):
        along = torch.arange(size, device="cpu") // width
        number = number * -(-size // width) + along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    # A stable sort by window leaves the cells of each in row-major order.
    order = number.reshape(-1).argsort(stable=True)
    return order, number.reshape(-1)[order]


def _with_reverses(paths: list[Tensor]) -> list[Tensor]:
    return paths + [path.flip(0) for path in paths]
