"""The causal convolution on a GPU where there are segments, long filters or time contiguous: tiles and launches.

Tiles follow from the shapes and the memory layout alone, and nothing is added atomically, so that results repeat bit
for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels.causal_conv1d.steps import read_steps
from mamba_kernels.causal_conv1d.triton_kernels import conv_backward, conv_forward
from mamba_kernels.gpu import ceil_divide, launch_grid, next_power_of_2

# Inputs in a tile, and its shorter side.
TILE = 4096
SHORT_SIDE = 32


class TiledConvolution:
    """One convolution's inputs as the kernels take them, forward and backward."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial: Tensor | None,
        silu: bool,
        reverse: bool,
    ) -> None:
        _, channels, length = x.shape
        width = weight.shape[1]
        # The long side of a tile lies along what is contiguous in memory.
        along_length = x.stride(2) == 1 and length > 1
        long_side = next_power_of_2(min(length if along_length else channels, TILE // SHORT_SIDE))
        short_side = next_power_of_2(min(channels if along_length else length, SHORT_SIDE))
        self.rows, columns = (long_side, short_side) if along_length else (short_side, long_side)
        self.column_blocks, self.x = ceil_divide(channels, columns), x
        steps, reach, counts = (x, x, x) if seq_idx is None else read_steps(seq_idx, width, reverse)
        bias_D = x if bias is None else bias.contiguous()  # x stands for what is never read.
        self.inputs = (x, weight, bias_D, x if initial is None else initial, steps, reach, counts)
        initial_strides = (0, 0, 0) if initial is None else initial.stride()
        self.strides = (*x.stride(), *weight.stride(), *initial_strides)
        self.options: dict[str, Any] = {
            "WIDTH": width,
            "ROWS": self.rows,
            "COLUMNS": columns,
            "SILU": silu,
            "REVERSE": reverse,
            "HAS_BIAS": bias is not None,
            "HAS_STEPS": seq_idx is not None,
            "HAS_INITIAL": initial is not None,
        }

    def blocks(self, ranks: int) -> int:
        """Return into how many tiles ``ranks`` are cut."""
        return ceil_divide(ranks, self.rows)

    def grid(self, ranks: int) -> tuple[int, ...]:
        """Return the programs that ``ranks`` take."""
        return launch_grid("causal_conv1d", self.x.shape[0] * self.blocks(ranks), self.column_blocks)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    y: Tensor,
    final: Tensor | None,
) -> None:
    """Fill ``y`` but for the padding, and the final states where they are given."""
    run = TiledConvolution(x, weight, bias, seq_idx, initial, silu, reverse)
    length = x.shape[2]
    conv_forward[run.grid(length)](
        *run.inputs, y, y if final is None else final, x.shape[1], length, run.blocks(length), *run.strides,
        *y.stride(), *((0, 0, 0) if final is None else final.stride()), HAS_FINAL=final is not None,
        KEEP=next_power_of_2(max(1, weight.shape[1] - 1)), **run.options,
    )  # fmt: skip


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor | None,
    dinitial: Tensor | None,
) -> None:
    """Fill the gradients of x, but for the padding, of weight, bias and the initial states."""
    run = TiledConvolution(x, weight, bias, seq_idx, initial, silu, reverse)
    batch, channels, length = x.shape
    width = weight.shape[1]
    ranks = length + (0 if initial is None else width - 1)
    blocks = run.blocks(ranks)
    parts = torch.empty(batch * blocks, 1, width + 1, channels, dtype=torch.float32, device=x.device)
    conv_backward[run.grid(ranks)](
        dy, dy if dfinal is None else dfinal, *run.inputs, dx, parts, dx if dinitial is None else dinitial,
        channels, length, blocks, *dy.stride(), *((0, 0, 0) if dfinal is None else dfinal.stride()), *run.strides,
        *dx.stride(), *((0, 0, 0) if dinitial is None else dinitial.stride()),
        HAS_DFINAL=dfinal is not None, **run.options,
    )  # fmt: skip
    sums = parts.sum(0)[0]
    dweight.copy_(sums[:width].mT)
    if dbias is not None:
        dbias.copy_(sums[width])
