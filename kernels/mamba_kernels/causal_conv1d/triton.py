"""The causal convolution on a GPU: what the Triton kernels read, and in what tiles.

Tiles follow from the shapes and the memory layout alone, and nothing is added atomically, so that results repeat bit
for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels.causal_conv1d.steps import read_steps
from mamba_kernels.causal_conv1d.triton_kernels import conv_backward, conv_forward
from mamba_kernels.gpu import ceil_divide, launch_grid, next_power_of_2, on_device_of_inputs, refuse_float64
from mamba_kernels.layout import empty_in_order

# Inputs in a tile, and its shorter side.
TILE = 4096
SHORT_SIDE = 32


class _Convolution:
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
        refuse_float64("causal_conv1d", x, weight, bias, initial)
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
        return launch_grid("causal_conv1d", self.x.shape[0] * self.blocks(ranks), self.column_blocks)

    def empty(self, like: Tensor) -> Tensor:
        """Return what takes results at all positions: zeros where there may be padding, otherwise uninitialised."""
        result = empty_in_order(like)
        return result.zero_() if self.options["HAS_STEPS"] else result


@on_device_of_inputs
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    final: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the output in the dimension order of x, and ``final`` filled with the final states."""
    run = _Convolution(x, weight, bias, seq_idx, initial, silu, reverse)
    y = run.empty(x)
    length = x.shape[2]
    conv_forward[run.grid(length)](
        *run.inputs, y, final, x.shape[1], length, run.blocks(length), *run.strides, *y.stride(), *final.stride(),
        KEEP=next_power_of_2(max(1, weight.shape[1] - 1)), **run.options,
    )  # fmt: skip
    return y, final


@on_device_of_inputs
def backward(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and the initial states, in the dtypes and dimension orders of these."""
    run = _Convolution(x, weight, bias, seq_idx, initial, silu, reverse)
    batch, channels, length = x.shape
    width = weight.shape[1]
    ranks = length + (0 if initial is None else width - 1)
    blocks = run.blocks(ranks)
    dx = run.empty(x)
    dweight = torch.empty(batch, blocks, width, channels, dtype=torch.float32, device=x.device)
    dbias = torch.empty(batch, blocks, channels, dtype=torch.float32, device=x.device)
    dinitial = None if initial is None else empty_in_order(initial, torch.float32)
    dinitial_strides = (0, 0, 0) if dinitial is None else dinitial.stride()
    conv_backward[run.grid(ranks)](
        dy, dfinal, *run.inputs, dx, dweight, dbias, dx if dinitial is None else dinitial,
        channels, length, blocks, *dy.stride(), *dfinal.stride(), *run.strides, *dx.stride(), *dinitial_strides,
        **run.options,
    )  # fmt: skip
    return (
        dx,
        empty_in_order(weight).copy_(dweight.sum((0, 1)).mT),
        None if bias is None else empty_in_order(bias).copy_(dbias.sum((0, 1))),
        None if initial is None or dinitial is None else dinitial.to(initial.dtype),
    )
