"""Windows over a signal that arrives in pieces: those that are whole, and what waits for the next piece."""

from __future__ import annotations

from torch import Tensor


def whole_windows(x: Tensor, size: int, stride: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Split a signal where its last whole window ends.

    Args:
        x: The signal: what waited, and the new piece.
        size: Length of a window.
        stride: Distance of neighbouring windows, at most ``size``.
        dim: The dimension that they lie along.

    Returns:
        The part that whole windows cover, empty where there are none, and the part that later windows begin in.
    """
    count = max(0, (x.shape[dim] - size) // stride + 1)
    covered = (count - 1) * stride + size if count else 0
    start = count * stride
    # A copy, so that what waits does not keep the whole piece in memory.
    return x.narrow(dim, 0, covered), x.narrow(dim, start, x.shape[dim] - start).clone()
