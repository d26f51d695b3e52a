"""How the walking kernels of the causal convolution are laid over a GPU, and their launches.

Everything follows from layouts and the GPU alone, and nothing is added atomically, so that results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.causal_conv1d.triton_walk import turn, walk_backward, walk_forward
from mamba_kernels.gpu import ceil_divide, launch_grid, multiprocessors, next_power_of_2
from mamba_kernels.launch import Launch
from mamba_kernels.memo import per_layout
from mamba_kernels.sums import add_parts

# Filters that fit into registers with all that moves along with them.
WIDTHS = range(2, 5)
WARPS = 4
# Steps whose loads are in flight together, channels of a lane (fewer where more is kept of each), ranks of a part at
# most and at least, warps that a multiprocessor should have to hide the latency of memory, and backward programs that
# stay on it together.
STEPS = 4
FORWARD_LANE, BACKWARD_LANE, BACKWARD_BOTH_LANE = 4, 4, 2
FORWARD_PART, BACKWARD_PART = 64, 61
LEAST_PART = 16
FORWARD_WARPS, BACKWARD_PROGRAMS = 24, 4


@per_layout
def _plan_turn(x: Tensor, y: Tensor) -> Launch:
    batch, channels, length = x.shape
    side = 64
    grid = launch_grid("causal_conv1d", batch * ceil_divide(length, side), ceil_divide(channels, side))
    return Launch(turn, grid, channels, length, *x.stride(), *y.stride(), ROWS=side, COLUMNS=side, num_warps=WARPS)


def copy_turned(x: Tensor, y: Tensor) -> Tensor:
    """Copy x (B, D, L) to y and return it: a tile at a time, where PyTorch's copy would read or write far apart."""
    if x.numel():
        _plan_turn(x, y)(x, y)
    return y


class Walk(NamedTuple):
    """How one convolution is cut: tiles of walkers and channels, parts of sequences."""

    columns: int
    rows: int
    blocks: int
    parts: int
    part_length: int
    tasks: int

    @property
    def groups(self) -> int:
        """Walkers' tiles for one block of channels."""
        return ceil_divide(self.tasks, self.rows)


def fits(x: Tensor, weight: Tensor, seq_idx: Tensor | None) -> bool:
    """Return whether the kernels can take these inputs (B, D, L): no segments, and not with time contiguous."""
    return seq_idx is None and weight.shape[-1] in WIDTHS and not is_length_last(x)


def is_length_last(x: Tensor) -> bool:
    """Return whether time is contiguous, so that lanes of channels would read far apart."""
    return x.stride(2) == 1 and x.shape[2] > 1 and x.shape[1] > 1


def cut(x: Tensor, lane: int, longest: int, steps: int, extra: int, warps: int) -> Walk:
    """Cut a convolution of x (B, D, L).

    Args:
        x: The input.
        lane: Channels of a lane.
        longest: Ranks of a part at most, but for rounding.
        steps: Ranks walked at once.
        extra: Ranks walked in excess of a part.
        warps: Warps a multiprocessor should get.
    """
    batch, channels, length = x.shape
    columns = next(c for c in (128, 64, 32) if c == 32 or ceil_divide(channels, c) * c * 8 <= channels * 9)
    columns = min(columns, next_power_of_2(channels))
    rows = max(1, 32 * WARPS * lane // columns)
    blocks = ceil_divide(channels, columns)
    lanes = batch * ceil_divide(blocks * columns, lane)
    wanted = ceil_divide(multiprocessors(x.device) * warps * 32, max(1, lanes))
    parts = max(ceil_divide(length, longest), min(wanted, ceil_divide(length, LEAST_PART)))
    part_length = ceil_divide(ceil_divide(length, parts) + extra, steps) * steps - extra
    parts = ceil_divide(length, part_length)
    return Walk(columns, rows, blocks, parts, part_length, batch * parts)


def _sets(x: Tensor | None, rank: int) -> tuple[int, ...]:
    """Return the strides of a parameter's sets, one set where the dimension is missing."""
    if x is None:
        return (0,) * rank
    return x.stride() if x.dim() == rank else (0, *x.stride())


def _readings(y: Tensor) -> tuple[int, ...]:
    return y.stride() if y.dim() == 4 else (y.stride(0), 0, *y.stride()[1:])


def _constants(
    weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool, reverse: bool
) -> dict[str, Any]:
    return {
        "WIDTH": weight.shape[-1],
        "SILU": silu,
        "REVERSE": reverse,
        "BOTH": weight.dim() == 3,
        "HAS_BIAS": bias is not None,
        "HAS_INITIAL": initial is not None,
        "num_warps": WARPS,
    }


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if x is None else x.stride()


@per_layout
def _plan_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    y: Tensor,
    final: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Launch:
    both = weight.dim() == 3
    walk = cut(x, FORWARD_LANE, FORWARD_PART, STEPS, weight.shape[-1] - 1 if both else 0, FORWARD_WARPS)
    return Launch(
        walk_forward, launch_grid("causal_conv1d", walk.groups * walk.blocks),
        x.shape[1], x.shape[2], walk.tasks, walk.parts, walk.part_length, *x.stride(), *_sets(weight, 3),
        *_sets(bias, 2), *_strides(initial), *_readings(y), *_strides(final),
        ROWS=walk.rows, COLUMNS=walk.columns, STEPS=STEPS, HAS_FINAL=final is not None,
        **_constants(weight, bias, initial, silu, reverse),
    )  # fmt: skip


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    y: Tensor,
    final: Tensor | None,
) -> None:
    """Fill ``y``, and the final states where they are given.

    Args:
        x: (B, D, L).
        weight: (D, W); or (2, D, W), for a reading from each end.
        bias: (D,), or (2, D).
        initial: (B, D, W - 1); for one reading alone, as ``reverse`` and ``final``.
        silu: Whether SiLU follows.
        reverse: Whether to read from the last position.
        y: (B, D, L), or (B, 2, D, L).
        final: (B, D, W - 1).
    """
    if x.shape[0] == 0:
        return
    launch = _plan_forward(x, weight, bias, initial, y, final, silu, reverse)
    # x and y stand for what is never touched.
    launch(
        x, weight, x if bias is None else bias, x if initial is None else initial, y, y if final is None else final
    )  # fmt: skip


class _Backward(NamedTuple):
    """The launch of the backward kernel, and the shape of the parts it leaves."""

    launch: Launch
    parts: tuple[int, ...]


@per_layout
def _plan_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    dx: Tensor,
    dinitial: Tensor | None,
    silu: bool,
    reverse: bool,
) -> _Backward:
    both, width = weight.dim() == 3, weight.shape[-1]
    lane = BACKWARD_BOTH_LANE if both else BACKWARD_LANE
    walk = cut(x, lane, BACKWARD_PART, STEPS, width - 1, 4 * BACKWARD_PROGRAMS)
    # As many programs as stay on the GPU together, each with as many groups as the others but for one.
    most = max(1, multiprocessors(x.device) * BACKWARD_PROGRAMS // walk.blocks)
    programs = ceil_divide(walk.groups, ceil_divide(walk.groups, most))
    launch = Launch(
        walk_backward, launch_grid("causal_conv1d", programs * walk.blocks),
        x.shape[1], x.shape[2], walk.tasks, walk.parts, walk.part_length, *_readings(dy), *_strides(dfinal),
        *x.stride(), *_sets(weight, 3), *_sets(bias, 2), *_strides(initial), *dx.stride(), *_strides(dinitial),
        ROWS=walk.rows, COLUMNS=walk.columns, STEPS=STEPS, HAS_DFINAL=dfinal is not None,
        **_constants(weight, bias, initial, silu, reverse),
    )  # fmt: skip
    terms = width if bias is None else width + 1
    return _Backward(launch, (programs, 2 if both else 1, terms, x.shape[1]))


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor | None,
    dinitial: Tensor | None,
) -> None:
    """Fill the gradients; the arguments are those of `forward`, and the gradients of its results."""
    if x.shape[0] == 0:
        dweight.zero_()
        if dbias is not None:
            dbias.zero_()
        return
    launch, shape = _plan_backward(dy, dfinal, x, weight, bias, initial, dx, dinitial, silu, reverse)
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    launch(
        dy, dy if dfinal is None else dfinal, x, weight, x if bias is None else bias, x if initial is None else initial,
        dx, dx if dinitial is None else dinitial, parts,
    )  # fmt: skip
    if weight.dim() == 2:
        dweight, dbias = dweight[None], None if dbias is None else dbias[None]
    add_parts(parts, dweight, dbias)
