"""A route's readings of one grid: index tensors, and what gathers and merges along them in plain PyTorch.

Dimensions: B batch, K readings, L cells of the grid, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
        return torch.stack([x_BLD.index_select(1, order) for order in self.order], 1)

    def gather_each(self, x: Tensor) -> Tensor:
        """Return what each reading reads of its own grid: (B, K, *grid, D) to (B, K, L, D)."""
        x_BKLD = x.flatten(2, -2)
        return torch.stack([x_BKLD[:, k].index_select(1, order) for k, order in enumerate(self.order)], 1)

    def scatter_merge(self, y: Tensor) -> Tensor:
        """Put each reading's results back on the grid and merge them.

        Args:
            y: (B, K, L, D), in reading order.

        Returns:
            (B, *grid, D), or (B, *grid, K*D) where the merge is "concat".
        """
        parts = [y[:, k].index_select(1, inverse) for k, inverse in enumerate(self.inverse)]
        if self.merge == "concat":
            merged = torch.cat(parts, -1)
        else:
            merged = parts[0]
            for part in parts[1:]:
                merged = merged + part
            if self.merge == "mean":
                merged = merged / len(parts)
        return merged.unflatten(1, self.shape)
