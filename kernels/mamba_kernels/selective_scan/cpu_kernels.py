"""The selective scan compiled for the CPU: one task reads one sequence for some blocks of 16 channels.

A block is 16 channels of one group; what belongs to a channel and a state is laid out (block, N, 16), so that the 16
channels are one vector. Time is cut into chunks that stay in the cache. The backward pass runs each chunk twice:
forwards from the state at its start, keeping what the second run needs, then backwards.

Dimensions: B batch, L length, K blocks, N state, S checkpoints, P tasks of one sequence. A step counts in reading
order, a position in memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from mamba_kernels import tiles
from mamba_kernels.simd import (
    LANES,
    compile_kernel,
    exp2,
    fma,
    load,
    row_totals,
    sigmoid,
    softplus,
    softplus_slope,
    splat,
    splat_at,
    store,
    total,
)
from mamba_kernels.tiles import aligned, load_rows, load_tile, store_rows, store_tile

LN2 = math.log(2.0)
RESET, PADDING = 1, 2


class Plan(NamedTuple):
    """How a scan is cut into tasks, and its options; integers all, so that a kernel is compiled once."""

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

    data: np.ndarray
    strides: tuple[int, ...]


@numba.njit
def _part(plan, task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return a task's sequence, its number within the sequence, its group, its first block and its last plus one."""
    tasks = plan.groups * plan.splits
    sequence, part = task // tasks, task % tasks
    group, split = part // plan.splits, part % plan.splits
    first = split * plan.task_blocks
    offset = group * plan.group_blocks
    return sequence, part, group, offset + first, offset + min(first + plan.task_blocks, plan.group_blocks)


@numba.njit
def _place(plan, view, sequence, block, begin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return where a block's tile starts, how many lanes it has, and the strides of lanes and steps."""
    group, within = block // plan.group_blocks, block % plan.group_blocks * LANES
    strides = view.strides
    position, direction = (plan.length - 1 - begin, -1) if plan.reverse else (begin, 1)
    start = sequence * strides[0] + (group * plan.group_channels + within) * strides[1] + position * strides[2]
    return start, min(LANES, plan.group_channels - within), strides[1], direction * strides[2]


@numba.njit
def _read(plan, tile, view, sequence, block, begin, steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, lanes, lane_stride, step_stride = _place(plan, view, sequence, block, begin)
    load_tile(tile, steps, view.data, start, lanes, lane_stride, step_stride)


@numba.njit
def _write(plan, tile, view, sequence, block, begin, steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, lanes, lane_stride, step_stride = _place(plan, view, sequence, block, begin)
    store_tile(tile, steps, view.data, start, lanes, lane_stride, step_stride)


@numba.njit
def _place_rows(plan, view, sequence, group, begin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return where a chunk of B or C starts, and the strides of states and steps."""
    strides = view.strides
    position, direction = (plan.length - 1 - begin, -1) if plan.reverse else (begin, 1)
    return sequence * strides[0] + group * strides[1] + position * strides[3], strides[2], direction * strides[3]


@numba.njit
def _read_rows(plan, rows, view, sequence, group, begin, steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, state_stride, step_stride = _place_rows(plan, view, sequence, group, begin)
    load_rows(rows, steps, plan.state, view.data, start, state_stride, step_stride)


@numba.njit
def _write_rows(plan, rows, view, sequence, group, begin, steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, state_stride, step_stride = _place_rows(plan, view, sequence, group, begin)
    store_rows(rows, steps, plan.state, view.data, start, state_stride, step_stride)


@numba.njit
def _to_step_sizes(plan, dt, steps, bias, block):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Turn a tile of delta into step sizes."""
    shift = load(bias, block * LANES)
    for i in range(0, steps * LANES, LANES):
        dt_t = load(dt, i) + shift
        if plan.softplus:
            dt_t = softplus(dt_t)
        store(dt, i, dt_t)


@numba.njit
def _copy(source, start, target, place, size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(0, size, LANES):
        store(target, place + i, load(source, start + i))


@numba.njit
def _clear(target, place, size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    zero = splat(target.dtype.type(0))
    for i in range(0, size, LANES):
        store(target, place + i, zero)


@numba.njit
def _mark(plan, marks, sequence, step):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return marks[sequence * plan.length + step] if plan.marked else 0


@numba.njit
def _checkpoint(plan, sequence, count, block):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return where the state of a block after ``count`` times ``every`` steps is kept."""
    kept = (plan.length - 1) // plan.every
    return ((sequence * kept + count - 1) * plan.groups * plan.group_blocks + block) * plan.state * LANES


@compile_kernel(tiles.__file__)
def scan_forward(task, plan, u, delta, A, B, C, skip, z, bias, marks, state, checkpoints, y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Run one task: write its part of y and of the checkpoints, and turn ``state`` into the last state.

    Args:
        task: Number of the task.
        plan: The cut and the options.
        u, delta, z, y: Views of input, step sizes, gate and output.
        A: Decay rates times log2(e), (K, N, 16).
        B, C: Views; constant ones hold (K, N, 16).
        skip: D, (K, 16).
        bias: The bias of delta, (K, 16).
        marks: RESET or PADDING for each step, (B, L).
        state: Initial states (B, K, N, 16), replaced by the last ones.
        checkpoints: States after each ``plan.every`` steps, (B, S, K, N, 16).
    """
    sequence, _, group, first, last = _part(plan, task)
    size = plan.state * LANES
    zero = splat(A.dtype.type(0))
    dt, x, gate = aligned(plan.chunk * LANES, A), aligned(plan.chunk * LANES, A), aligned(plan.chunk * LANES, A)
    B_rows, C_rows = aligned(plan.chunk * plan.state, A), aligned(plan.chunk * plan.state, A)
    for begin in range(0, plan.length, plan.chunk):
        steps = min(plan.chunk, plan.length - begin)
        if not plan.B_fixed:
            _read_rows(plan, B_rows, B, sequence, group // plan.B_share, begin, steps)
        if not plan.C_fixed:
            _read_rows(plan, C_rows, C, sequence, group // plan.C_share, begin, steps)
        for block in range(first, last):
            _read(plan, dt, delta, sequence, block, begin, steps)
            _to_step_sizes(plan, dt, steps, bias, block)
            _read(plan, x, u, sequence, block, begin, steps)
            if plan.gated:
                _read(plan, gate, z, sequence, block, begin, steps)
            weight = load(skip, block * LANES)
            constants = block * size
            states = (sequence * plan.groups * plan.group_blocks + block) * size
            for t in range(steps):
                mark = _mark(plan, marks, sequence, begin + t)
                if mark == PADDING:
                    store(x, t * LANES, zero)
                    continue
                if mark == RESET:
                    _clear(state, states, size)
                dt_t, x_t = load(dt, t * LANES), load(x, t * LANES)
                input_t, y_t = dt_t * x_t, weight * x_t
                for n in range(plan.state):
                    i = n * LANES
                    decay = exp2(dt_t * load(A, constants + i))
                    B_tn = load(B.data, constants + i) if plan.B_fixed else splat_at(B_rows, t * plan.state + n)
                    C_tn = load(C.data, constants + i) if plan.C_fixed else splat_at(C_rows, t * plan.state + n)
                    h = fma(decay, load(state, states + i), input_t * B_tn)
                    store(state, states + i, h)
                    y_t = fma(h, C_tn, y_t)
                if plan.gated:
                    z_t = load(gate, t * LANES)
                    y_t = y_t * (z_t * sigmoid(z_t))
                store(x, t * LANES, y_t)
            _write(plan, x, y, sequence, block, begin, steps)
            done = begin + steps
            if plan.every > 0 and done % plan.every == 0 and done < plan.length:
                _copy(state, states, checkpoints, _checkpoint(plan, sequence, done // plan.every, block), size)


@numba.njit
def _advance(plan, steps, begin, sequence, dt, x, A, B, B_rows, constants, marks, state, at):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Run a chunk forwards for the state at its end alone."""
    size = plan.state * LANES
    for t in range(steps):
        mark = _mark(plan, marks, sequence, begin + t)
        if mark == PADDING:
            continue
        if mark == RESET:
            _clear(state, at, size)
        dt_t = load(dt, t * LANES)
        input_t = dt_t * load(x, t * LANES)
        for n in range(plan.state):
            i = n * LANES
            decay = exp2(dt_t * load(A, constants + i))
            B_tn = load(B.data, constants + i) if plan.B_fixed else splat_at(B_rows, t * plan.state + n)
            store(state, at + i, fma(decay, load(state, at + i), input_t * B_tn))


@numba.njit
def _chunk_starts(  # type: ignore[no-untyped-def]  # noqa: ANN202
    plan, sequence, group, first, last, begin, count, u, delta, A, B, bias, marks, dt, x, B_rows, starts  # noqa: ANN001
):
    """Fill ``starts`` (count, blocks of the task, N, 16), whose first row is there, with the states chunks begin at."""
    size = plan.state * LANES
    row = (last - first) * size
    for chunk in range(count - 1):
        step = begin + chunk * plan.chunk
        if not plan.B_fixed:
            _read_rows(plan, B_rows, B, sequence, group // plan.B_share, step, plan.chunk)
        for block in range(first, last):
            _read(plan, dt, delta, sequence, block, step, plan.chunk)
            _to_step_sizes(plan, dt, plan.chunk, bias, block)
            _read(plan, x, u, sequence, block, step, plan.chunk)
            at = chunk * row + (block - first) * size
            _copy(starts, at, starts, at + row, size)
            _advance(plan, plan.chunk, step, sequence, dt, x, A, B, B_rows, block * size, marks, starts, at + row)


@numba.njit
def _keep(  # type: ignore[no-untyped-def]  # noqa: ANN202
    plan, steps, begin, sequence, dt, x, A, B, B_rows, C, C_rows, constants, marks, state, at, decays, carried, y  # noqa: ANN001
):
    """Run a chunk forwards, keeping each decay and decay times state, and for the gate's gradient the ungated y."""
    size = plan.state * LANES
    zero = splat(A.dtype.type(0))
    for t in range(steps):
        mark = _mark(plan, marks, sequence, begin + t)
        if mark == PADDING:
            continue
        if mark == RESET:
            _clear(state, at, size)
        dt_t = load(dt, t * LANES)
        input_t = dt_t * load(x, t * LANES)
        y_t = zero
        for n in range(plan.state):
            i = n * LANES
            decay = exp2(dt_t * load(A, constants + i))
            B_tn = load(B.data, constants + i) if plan.B_fixed else splat_at(B_rows, t * plan.state + n)
            kept = decay * load(state, at + i)
            store(decays, t * size + i, decay)
            store(carried, t * size + i, kept)
            h = fma(input_t, B_tn, kept)
            store(state, at + i, h)
            if plan.gated:
                C_tn = load(C.data, constants + i) if plan.C_fixed else splat_at(C_rows, t * plan.state + n)
                y_t = fma(h, C_tn, y_t)
        if plan.gated:
            store(y, t * LANES, y_t)


@numba.njit
def _ungate(dy, gate, y, x, weight, steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Turn the gradient of the gated output into that of the ungated one, and ``y`` into the gate's gradient."""
    one = splat(dy.dtype.type(1))
    for i in range(0, steps * LANES, LANES):
        dy_t, z_t = load(dy, i), load(gate, i)
        sigma = sigmoid(z_t)
        ungated = fma(weight, load(x, i), load(y, i))
        store(y, i, dy_t * ungated * (sigma * fma(z_t, one - sigma, one)))
        store(dy, i, dy_t * (z_t * sigma))


@numba.njit
def _add_totals(plan, rows, t, products):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Add to row t, for each state, the sum over lanes of ``products`` (N, 16)."""
    whole = plan.state // LANES * LANES
    for n in range(0, whole, LANES):
        place = t * plan.state + n
        store(rows, place, load(rows, place) + row_totals(products, n * LANES))
    for n in range(whole, plan.state):
        rows[t * plan.state + n] += total(load(products, n * LANES))


@numba.njit
def _to_delta_gradient(  # type: ignore[no-untyped-def]  # noqa: ANN202
    plan, ddt, scratch, delta, sequence, block, begin, steps, bias, marks, dbias, at  # noqa: ANN001
):
    """Turn the gradient of the step sizes into that of delta, and add it up for the bias."""
    if plan.softplus:
        shift = load(bias, block * LANES)
        _read(plan, scratch, delta, sequence, block, begin, steps)
        for t in range(steps):
            if _mark(plan, marks, sequence, begin + t) != PADDING:
                slope = softplus_slope(load(scratch, t * LANES) + shift)
                store(ddt, t * LANES, load(ddt, t * LANES) * slope)
    sums = load(dbias, at)
    for i in range(0, steps * LANES, LANES):
        sums = sums + load(ddt, i)
    store(dbias, at, sums)


@numba.njit
def _accumulate(target, at, products, size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(0, size, LANES):
        store(target, at + i, load(target, at + i) + load(products, i))


@compile_kernel(tiles.__file__)
def scan_backward(  # type: ignore[no-untyped-def]  # noqa: ANN201
    task, plan, u, delta, A, B, C, skip, z, bias, marks, initial, checkpoints,  # noqa: ANN001
    grad_y, du, ddelta, dA, dB, dC, dskip, dz, dbias, carry,  # noqa: ANN001
):  # fmt: skip
    """Run one task of the backward pass.

    Args:
        task, plan, u, delta, A, B, C, skip, z, bias, marks, checkpoints: As in `scan_forward`.
        initial: Initial states (B, K, N, 16).
        grad_y, du, ddelta, dz: Views of gradients.
        dA: Gradient for each sequence (B, K, N, 16), zeros before.
        dB, dC: Views over batch, task of the sequence, state and position; constant ones as dA.
        dskip, dbias: Gradients for each sequence (B, K, 16), zeros before.
        carry: Gradient of the last state (B, K, N, 16), replaced by that of the initial one.
    """
    sequence, part, group, first, last = _part(plan, task)
    size, tile, row = plan.state * LANES, plan.chunk * LANES, plan.chunk * plan.state
    zero, ln2 = splat(A.dtype.type(0)), splat(A.dtype.type(LN2))
    dt, x, dy, gate, y = aligned(tile, A), aligned(tile, A), aligned(tile, A), aligned(tile, A), aligned(tile, A)
    decays, carried = aligned(plan.chunk * size, A), aligned(plan.chunk * size, A)
    B_products, C_products = aligned(size, A), aligned(size, A)
    B_rows, C_rows, dB_rows, dC_rows = aligned(row, A), aligned(row, A), aligned(row, A), aligned(row, A)
    chunks = -(-plan.length // plan.chunk)
    span = plan.every // plan.chunk if plan.every > 0 else chunks
    starts = aligned(min(span, chunks) * (last - first) * size, A)
    for upper in range(-(-chunks // span) - 1, -1, -1):
        for block in range(first, last):
            at = (block - first) * size
            if upper > 0:
                _copy(checkpoints, _checkpoint(plan, sequence, upper, block), starts, at, size)
            else:
                _copy(initial, (sequence * plan.groups * plan.group_blocks + block) * size, starts, at, size)
        count = min(span, chunks - upper * span)
        opening = upper * span * plan.chunk
        _chunk_starts(
            plan, sequence, group, first, last, opening, count, u, delta, A, B, bias, marks, dt, x, B_rows, starts
        )
        for chunk in range(count - 1, -1, -1):
            begin = opening + chunk * plan.chunk
            steps = min(plan.chunk, plan.length - begin)
            if not plan.B_fixed:
                _read_rows(plan, B_rows, B, sequence, group // plan.B_share, begin, steps)
                dB_rows[:] = 0
            if not plan.C_fixed:
                _read_rows(plan, C_rows, C, sequence, group // plan.C_share, begin, steps)
                dC_rows[:] = 0
            for block in range(first, last):
                _read(plan, dt, delta, sequence, block, begin, steps)
                _to_step_sizes(plan, dt, steps, bias, block)
                _read(plan, x, u, sequence, block, begin, steps)
                _read(plan, dy, grad_y, sequence, block, begin, steps)
                weight = load(skip, block * LANES)
                constants = block * size
                whole = sequence * plan.groups * plan.group_blocks + block
                states = whole * size
                at = (chunk * (last - first) + block - first) * size
                _keep(
                    plan, steps, begin, sequence, dt, x, A, B, B_rows, C, C_rows, constants, marks, starts, at,
                    decays, carried, y,
                )  # fmt: skip
                if plan.gated:
                    _read(plan, gate, z, sequence, block, begin, steps)
                    _ungate(dy, gate, y, x, weight, steps)
                dweight = load(dskip, whole * LANES)
                for t in range(steps - 1, -1, -1):
                    mark = _mark(plan, marks, sequence, begin + t)
                    if mark == PADDING:
                        store(dt, t * LANES, zero)
                        store(x, t * LANES, zero)
                        store(y, t * LANES, zero)
                        continue
                    dt_t, x_t, dy_t = load(dt, t * LANES), load(x, t * LANES), load(dy, t * LANES)
                    input_t = dt_t * x_t
                    by_input, by_decay = zero, zero
                    for n in range(plan.state):
                        i = n * LANES
                        B_tn = load(B.data, constants + i) if plan.B_fixed else splat_at(B_rows, t * plan.state + n)
                        C_tn = load(C.data, constants + i) if plan.C_fixed else splat_at(C_rows, t * plan.state + n)
                        kept = load(carried, t * size + i)
                        g = fma(dy_t, C_tn, load(carry, states + i))
                        g_kept = g * kept
                        by_input = fma(g, B_tn, by_input)
                        by_decay = fma(g_kept, load(A, constants + i), by_decay)
                        store(dA, states + i, fma(g_kept, dt_t, load(dA, states + i)))
                        store(carry, states + i, g * load(decays, t * size + i))
                        store(B_products, i, g * input_t)
                        store(C_products, i, dy_t * fma(input_t, B_tn, kept))
                    if mark == RESET:
                        _clear(carry, states, size)
                    if plan.B_fixed:
                        _accumulate(dB.data, states, B_products, size)
                    else:
                        _add_totals(plan, dB_rows, t, B_products)
                    if plan.C_fixed:
                        _accumulate(dC.data, states, C_products, size)
                    else:
                        _add_totals(plan, dC_rows, t, C_products)
                    dweight = fma(dy_t, x_t, dweight)
                    store(dt, t * LANES, fma(x_t, by_input, ln2 * by_decay))
                    store(x, t * LANES, fma(dt_t, by_input, weight * dy_t))
                store(dskip, whole * LANES, dweight)
                _write(plan, x, du, sequence, block, begin, steps)
                if plan.gated:
                    _write(plan, y, dz, sequence, block, begin, steps)
                _to_delta_gradient(plan, dt, x, delta, sequence, block, begin, steps, bias, marks, dbias, whole * LANES)
                _write(plan, dt, ddelta, sequence, block, begin, steps)
            if not plan.B_fixed:
                _write_rows(plan, dB_rows, dB, sequence, part, begin, steps)
            if not plan.C_fixed:
                _write_rows(plan, dC_rows, dC, sequence, part, begin, steps)
