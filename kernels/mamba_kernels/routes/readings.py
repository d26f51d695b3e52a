"""A route's readings of one grid: index tensors, and what gathers and merges along them in plain PyTorch.

Dimensions: B batch, K readings, L cells of the grid, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mamba_kernels.autograd import wants_gradient
from mamba_kernels.eager import is_eager
from mamba_kernels.segments import segment_bits


@dataclass(frozen=True, eq=False)
class Readings:
    """The K orders in which a route reads a grid of one shape.

    Args:
        shape: Sizes of the grid's axes; L is their product.
        merge: "sum", "mean" or "concat": what ``scatter_merge`` does with the K results.
        order: (K, L) int32; the position in the flattened grid that is read at each step.
        inverse: (K, L) int32; the step at which each position is read.
        segment: (K, L) int32 or None; a number for each step, whose change resets the state.
        mirrored: Whether the second half of the readings are the first half's, reversed.
        row_major: Whether the first reading is the grid as it lies, so that nothing needs gathering.
    """

    shape: tuple[int, ...]
    merge: str
    order: Tensor
    inverse: Tensor
    segment: Tensor | None = None
    mirrored: bool = False
    row_major: bool = False

    @property
    def K(self) -> int:
        """The number of readings."""
        return self.order.shape[0]

    @property
    def L(self) -> int:
        """The number of cells, which is the length of every reading."""
        return self.order.shape[1]

    @cached_property
    def marks(self) -> Tensor | None:
        """What GPU kernels read of the segments, (K, L) int8; see `segment_bits`."""
        return None if self.segment is None else segment_bits(self.segment)

    def gather(self, x: Tensor) -> Tensor:
        """Return what each reading reads of a grid that all share: (B, *grid, D) to (B, K, L, D)."""
        x_BLD = x.flatten(1, -2)
        return torch.stack([self.along(k, x_BLD) for k in range(self.K)], 1)

    def gather_each(self, x: Tensor) -> Tensor:
        """Return what each reading reads of its own grid: (B, K, *grid, D) to (B, K, L, D)."""
        x_BKLD = x.flatten(2, -2)
        return torch.stack([self.along(k, x_BKLD[:, k]) for k in range(self.K)], 1)

    def along(self, k: int, x: Tensor) -> Tensor:
        """Return cells (B, L, D) in the order of reading ``k``."""
        return _permuted(x, self.order[k], self.inverse[k])

    def back(self, k: int, y: Tensor) -> Tensor:
        """Return what reading ``k`` made (B, L, D) in the order of the grid."""
        return _permuted(y, self.inverse[k], self.order[k])

    def scatter_merge(self, y: Tensor) -> Tensor:
        """Put each reading's results back on the grid and merge them.

        Args:
            y: (B, K, L, D), in reading order.

        Returns:
            (B, *grid, D), or (B, *grid, K*D) where the merge is "concat".
        """
        parts = [self.back(k, y[:, k]) for k in range(self.K)]
        if self.merge == "concat":
            merged = torch.cat(parts, -1)
        else:
            merged = parts[0]
            for part in parts[1:]:
                merged = merged + part
            if self.merge == "mean":
                merged = merged / len(parts)
        return merged.unflatten(1, self.shape)


def _permuted(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return ``x.index_select(1, order)``, whose derivative PyTorch, not knowing of an inverse, would add up."""
    if wants_gradient(x) and is_eager(x) and forward_ad._current_level < 0:
        return _Permutation.apply(x, order, inverse)
    return x.index_select(1, order)


class _Permutation(torch.autograd.Function):
    """Reads positions in another order; its derivative reads them in the inverse one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.orders = (order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.orders
        return _permuted(dy, inverse, order), None, None
