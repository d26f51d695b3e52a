"""One step of the selective scan compiled for the CPU: 16 states of a row at a time, 16 rows of a head at a time.

Dimensions: S sequences in the pool of states, B batch, H heads, P head width, N state, G groups. A row is one channel
of one head; its state is a vector of N numbers. A block is 16 rows of one head of one batch entry.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from mamba_kernels import tiles
from mamba_kernels.simd import (
    LANES,
    compile_kernel,
    exp2,
    fma,
    keep,
    load,
    moved,
    pointer,
    row_totals,
    sigmoid,
    softplus,
    splat_as,
    splat_at,
    store,
    take,
)
from mamba_kernels.tiles import aligned

LOG2E = math.log2(math.e)

Memory = Any  # a flat vector; inside the kernels a pointer


class Plan(NamedTuple):
    """The sizes and options of a step; integers all, so that the kernel is compiled once."""

    batch: int
    heads: int
    width: int
    state: int
    B_rows: int  # rows of heads and widths that read the same group of B
    C_rows: int
    task_blocks: int
    tasks: int
    softplus: int
    gated: int
    indexed: int


class View(NamedTuple):
    """A tensor as a flat vector, and its strides."""

    data: Memory
    strides: tuple[int, ...]


class Inputs(NamedTuple):
    """What a step reads and, for the state, writes."""

    state: View  # (S, H, P, N)
    x: View  # (B, H, P), as dt and z
    dt: View
    A: View  # (H, P, N)
    B: View  # (B, G, N), as C
    C: View
    D: View  # (H, P), as bias
    z: View
    bias: View
    indices: Memory  # (B,) int64


@numba.njit
def _pointers(view: View) -> View:
    return View(pointer(view.data), view.strides)


@numba.njit
def _gather(memory: Memory, start: int, stride: int, count: int, scratch: Memory) -> Any:
    """Return ``count`` numbers as lanes, zeros after them."""
    if stride == 1 and count == LANES:
        return load(memory, start)
    if stride == 0 and count == LANES:
        return splat_at(memory, start)
    store(scratch, 0, splat_as(scratch, 0.0))
    for i in range(count):
        scratch[i] = memory[start + i * stride]
    return load(scratch, 0)


@numba.njit
def _scatter(memory: Memory, start: int, stride: int, count: int, scratch: Memory, lanes: Any) -> None:
    """Write the first ``count`` lanes."""
    if stride == 1 and count == LANES:
        store(memory, start, lanes)
        return
    store(scratch, 0, lanes)
    for i in range(count):
        memory[start + i * stride] = scratch[i]


@numba.njit
def _rows(view: View, entry: int, head: int, first: int, count: int, scratch: Memory) -> Any:
    """Return the lanes of a block of x, dt or z."""
    strides = view.strides
    start = entry * strides[0] + head * strides[1] + first * strides[2]
    return _gather(view.data, start, strides[2], count, scratch)


@numba.njit
def _constant_rows(view: View, head: int, first: int, count: int, scratch: Memory) -> Any:
    """Return the lanes of a block of D or the bias."""
    strides = view.strides
    return _gather(view.data, head * strides[0] + first * strides[1], strides[1], count, scratch)


@numba.njit
def _step_rows(
    plan: Plan,
    inputs: Inputs,
    entry: int,
    sequence: int,
    head: int,
    first: int,
    count: int,
    dt: Memory,
    y: Memory,
    scratch: Memory,
) -> None:
    """Advance the states of a block's rows; leave what the output of row i is the sum of in y[16 * i : 16 * (i + 1)].

    ``dt`` holds the rows' step sizes times log2(e), and from 16 on their step sizes times x.
    """
    state, s = inputs.state.data, inputs.state.strides
    A, a = inputs.A.data, inputs.A.strides
    B, b = inputs.B.data, inputs.B.strides
    C, c = inputs.C.data, inputs.C.strides
    zero = splat_as(y, 0.0)
    number = head * plan.width + first
    B_group, C_group = number // plan.B_rows, number // plan.C_rows
    # The states read without a detour: whole vectors where they lie side by side, all but A, which may be tied.
    adjacent = s[3] == 1 and b[2] == 1 and c[2] == 1 and (a[2] == 0 or a[2] == 1)
    whole = plan.state // LANES * LANES if adjacent else 0
    for i in range(count):
        # Counting on is cheaper than a division for each row.
        B_group += number + i == (B_group + 1) * plan.B_rows
        C_group += number + i == (C_group + 1) * plan.C_rows
        state_start = sequence * s[0] + head * s[1] + (first + i) * s[2]
        A_start = head * a[0] + (first + i) * a[1]
        B_start, C_start = entry * b[0] + B_group * b[1], entry * c[0] + C_group * c[1]
        dt_i, input_i, products = splat_at(dt, i), splat_at(dt, LANES + i), zero
        for n in range(0, whole, LANES):
            decay = exp2(dt_i * (splat_at(A, A_start) if a[2] == 0 else load(A, A_start + n)))
            h = fma(decay, load(state, state_start + n), input_i * load(B, B_start + n))
            store(state, state_start + n, h)
            products = fma(h, load(C, C_start + n), products)
        for n in range(whole, plan.state, LANES):
            states = min(LANES, plan.state - n)
            decay = exp2(dt_i * _gather(A, A_start + n * a[2], a[2], states, scratch))
            h = _gather(state, state_start + n * s[3], s[3], states, scratch)
            h = fma(decay, h, input_i * _gather(B, B_start + n * b[2], b[2], states, scratch))
            _scatter(state, state_start + n * s[3], s[3], states, scratch, h)
            products = fma(h, _gather(C, C_start + n * c[2], c[2], states, scratch), products)
        store(y, i * LANES, products)


@compile_kernel(tiles.__file__)
def update(counter: np.ndarray, plan: Plan, inputs: Inputs, out: View) -> None:
    """Run tasks until none is left: write the output and advance the states.

    Args:
        counter: The next task's number, shared by all threads.
        plan: The sizes and options.
        inputs: What the step reads, and the states.
        out: The output, (B, H, P).
    """
    buffers = aligned((LANES + 3) * LANES, inputs.x.data)
    dt = pointer(buffers)
    scratch, y = moved(dt, 2 * LANES), moved(dt, 3 * LANES)
    read = Inputs(
        _pointers(inputs.state),
        _pointers(inputs.x),
        _pointers(inputs.dt),
        _pointers(inputs.A),
        _pointers(inputs.B),
        _pointers(inputs.C),
        _pointers(inputs.D),
        _pointers(inputs.z),
        _pointers(inputs.bias),
        pointer(inputs.indices),
    )
    target, strides = pointer(out.data), out.strides
    head_blocks = -(-plan.width // LANES)
    blocks = plan.batch * plan.heads * head_blocks
    for i in range(LANES):
        store(y, i * LANES, splat_as(y, 0.0))
    task = take(counter)
    while task < plan.tasks:
        for block in range(task * plan.task_blocks, min((task + 1) * plan.task_blocks, blocks)):
            entry, head = block // (plan.heads * head_blocks), block // head_blocks % plan.heads
            first = block % head_blocks * LANES
            count = min(LANES, plan.width - first)
            start = entry * strides[0] + head * strides[1] + first * strides[2]
            sequence = read.indices[entry] if plan.indexed else entry
            if sequence < 0:
                _scatter(target, start, strides[2], count, scratch, splat_as(scratch, 0.0))
                continue
            x = _rows(read.x, entry, head, first, count, scratch)
            steps = _rows(read.dt, entry, head, first, count, scratch)
            steps = steps + _constant_rows(read.bias, head, first, count, scratch)
            if plan.softplus:
                steps = softplus(steps)
            store(dt, 0, steps * splat_as(dt, LOG2E))
            store(dt, LANES, steps * x)
            _step_rows(plan, read, entry, sequence, head, first, count, dt, y, scratch)
            result = fma(_constant_rows(read.D, head, first, count, scratch), x, row_totals(y, 0))
            if plan.gated:
                gate = _rows(read.z, entry, head, first, count, scratch)
                result = result * (gate * sigmoid(gate))
            _scatter(target, start, strides[2], count, scratch, result)
        task = take(counter)
    keep(buffers)
