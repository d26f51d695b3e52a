"""How the CPU kernels of the selective scan cut their work, and how they reach their tensors.

A block is 16 channels of one group; what belongs to a channel and a state is laid out (K, N, 16), so that the 16
channels are one vector. A task is one sequence for some blocks of one group. Time is cut into chunks that stay in the
cache. A step counts in reading order, a position in memory.

Dimensions: B batch, L length, K blocks, N state, S checkpoints, P tasks of one sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba

from mamba_kernels.simd import LANES, load, pointer, softplus, splat_as, store
from mamba_kernels.tiles import load_rows, load_tile, store_rows, store_tile

RESET, PADDING = 1, 2

Memory = Any  # a flat vector; inside the kernels a pointer, which costs no reference counting


class Plan(NamedTuple):
    """The cut and the options of a scan; integers all, so that a kernel is compiled once."""

    tasks: int
    length: int
    state: int
    groups: int
    group_channels: int
    group_blocks: int  # blocks of a group; the last may lack lanes
    task_blocks: int  # blocks of a group that one task takes, the group's last task perhaps fewer
    splits: int  # tasks of one group and sequence
    chunk: int  # steps of a chunk
    every: int  # steps from one checkpoint to the next, a multiple of chunk; 0 for none
    B_share: int  # how many groups of the plan read the same group of B
    C_share: int
    B_fixed: int  # whether B is constant, laid out like A
    C_fixed: int
    softplus: int
    gated: int
    marked: int
    reverse: int


class View(NamedTuple):
    """A tensor as a flat vector: over batch, channel, position, or over batch, group, state, position."""

    data: Memory
    strides: tuple[int, ...]


class Inputs(NamedTuple):
    """What both passes read."""

    u: View
    delta: View
    A: Memory  # decay rates times log2(e), (K, N, 16)
    B: View  # a constant one holds (K, N, 16)
    C: View
    D: Memory  # (K, 16)
    z: View
    bias: Memory  # of delta, (K, 16)
    marks: Memory  # RESET, PADDING or 0 for each step, (B, L)


@numba.njit
def view_pointer(view: View) -> View:
    """Return a view whose memory is a pointer."""
    return View(pointer(view.data), view.strides)


@numba.njit
def input_pointers(inputs: Inputs) -> Inputs:
    """Return inputs whose memory is pointers; the caller keeps the vectors alive."""
    return Inputs(
        view_pointer(inputs.u),
        view_pointer(inputs.delta),
        pointer(inputs.A),
        view_pointer(inputs.B),
        view_pointer(inputs.C),
        pointer(inputs.D),
        view_pointer(inputs.z),
        pointer(inputs.bias),
        pointer(inputs.marks),
    )


@numba.njit
def part_of(plan: Plan, task: int) -> tuple[int, int, int, int, int]:
    """Return a task's sequence, its number within the sequence, its group, its first block and its last plus one."""
    tasks = plan.groups * plan.splits
    sequence, part = task // tasks, task % tasks
    group, split = part // plan.splits, part % plan.splits
    first = split * plan.task_blocks
    offset = group * plan.group_blocks
    return sequence, part, group, offset + first, offset + min(first + plan.task_blocks, plan.group_blocks)


@numba.njit
def block_number(plan: Plan, sequence: int, block: int) -> int:
    """Return a block's number among those of all sequences."""
    return sequence * plan.groups * plan.group_blocks + block


@numba.njit
def checkpoint_place(plan: Plan, sequence: int, count: int, block: int) -> int:
    """Return where the state of a block after ``count`` times ``plan.every`` steps is kept."""
    kept = (plan.length - 1) // plan.every
    return ((sequence * kept + count - 1) * plan.groups * plan.group_blocks + block) * plan.state * LANES


@numba.njit
def mark_at(plan: Plan, marks: Memory, sequence: int, step: int) -> int:
    """Return RESET, PADDING or 0."""
    return marks[sequence * plan.length + step] if plan.marked else 0


@numba.njit
def _start(plan: Plan, begin: int) -> tuple[int, int]:
    """Return the position of a step, and the direction of the next."""
    return (plan.length - 1 - begin, -1) if plan.reverse else (begin, 1)


@numba.njit
def _tile_place(plan: Plan, view: View, sequence: int, block: int, begin: int) -> tuple[int, int, int, int]:
    """Return where a block's tile starts, how many lanes it has, and the strides of lanes and steps."""
    group, within = block // plan.group_blocks, block % plan.group_blocks * LANES
    position, direction = _start(plan, begin)
    strides = view.strides
    start = sequence * strides[0] + (group * plan.group_channels + within) * strides[1] + position * strides[2]
    return start, min(LANES, plan.group_channels - within), strides[1], direction * strides[2]


@numba.njit
def read_tile(plan: Plan, tile: Memory, view: View, sequence: int, block: int, begin: int, steps: int) -> None:
    """Fill a tile with ``steps`` steps of a block from step ``begin`` on."""
    start, lanes, lane_stride, step_stride = _tile_place(plan, view, sequence, block, begin)
    load_tile(tile, steps, view.data, start, lanes, lane_stride, step_stride)


@numba.njit
def write_tile(plan: Plan, tile: Memory, view: View, sequence: int, block: int, begin: int, steps: int) -> None:
    """Write what `read_tile` reads."""
    start, lanes, lane_stride, step_stride = _tile_place(plan, view, sequence, block, begin)
    store_tile(tile, steps, view.data, start, lanes, lane_stride, step_stride)


@numba.njit
def read_rows(plan: Plan, rows: Memory, view: View, sequence: int, group: int, begin: int, steps: int) -> None:
    """Fill ``rows`` (steps, N) with a chunk of B or C."""
    position, direction = _start(plan, begin)
    strides = view.strides
    start = sequence * strides[0] + group * strides[1] + position * strides[3]
    load_rows(rows, steps, plan.state, view.data, start, strides[2], direction * strides[3])


@numba.njit
def write_rows(plan: Plan, rows: Memory, view: View, sequence: int, part: int, begin: int, steps: int) -> None:
    """Write ``rows`` (steps, N) to a chunk of the gradient of B or C that belongs to a part of a sequence."""
    position, direction = _start(plan, begin)
    strides = view.strides
    start = sequence * strides[0] + part * strides[1] + position * strides[3]
    store_rows(rows, steps, plan.state, view.data, start, strides[2], direction * strides[3])


@numba.njit
def read_step_sizes(plan: Plan, dt: Memory, inputs: Inputs, sequence: int, block: int, begin: int, steps: int) -> None:
    """Fill a tile with step sizes: delta plus bias, through the softplus."""
    read_tile(plan, dt, inputs.delta, sequence, block, begin, steps)
    shift = load(inputs.bias, block * LANES)
    for i in range(0, steps * LANES, LANES):
        dt_t = load(dt, i) + shift
        if plan.softplus:
            dt_t = softplus(dt_t)
        store(dt, i, dt_t)


@numba.njit
def copy(source: Memory, start: int, target: Memory, place: int, size: int) -> None:
    """Copy a multiple of 16 numbers."""
    for i in range(0, size, LANES):
        store(target, place + i, load(source, start + i))


@numba.njit
def clear(target: Memory, place: int, size: int) -> None:
    """Set a multiple of 16 numbers to 0."""
    zero = splat_as(target, 0.0)
    for i in range(0, size, LANES):
        store(target, place + i, zero)
