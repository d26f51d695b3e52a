"""The selective scan's backward pass, compiled for the CPU; see `cpu_plan` for the layout.

Each chunk is run twice: forwards from the state at its start, keeping every decay and decay times state, then
backwards. The states chunks start from come from the forward pass's checkpoints, or from one more run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba

from mamba_kernels import tiles
from mamba_kernels.selective_scan import cpu_plan
from mamba_kernels.selective_scan.cpu_plan import (
    PADDING,
    RESET,
    Inputs,
    Memory,
    Plan,
    View,
    block_number,
    checkpoint_place,
    clear,
    copy,
    input_pointers,
    mark_at,
    part_of,
    read_rows,
    read_step_sizes,
    read_tile,
    view_pointer,
    write_rows,
    write_tile,
)
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
    softplus_slope,
    splat_as,
    splat_at,
    store,
    take,
    total,
)
from mamba_kernels.tiles import aligned

LN2 = math.log(2.0)


class Gradients(NamedTuple):
    """What the backward pass writes."""

    u: View
    delta: View
    A: Memory  # for each sequence, (B, K, N, 16); zeros before
    B: View  # over batch, task of the sequence, state and position; a constant one as A
    C: View
    D: Memory  # for each sequence, (B, K, 16); zeros before
    z: View
    bias: Memory  # as D
    state: Memory  # of the last state (B, K, N, 16), replaced by that of the initial one


class _Scratch(NamedTuple):
    """Buffers of one thread: tiles (chunk, 16), kept values (chunk, N, 16), products (N, 16), rows (chunk, N)."""

    dt: Memory  # becomes the gradient of delta
    x: Memory  # u, becomes its gradient
    dy: Memory
    gate: Memory
    y: Memory  # becomes the gradient of z
    decays: Memory
    carried: Memory
    B_products: Memory
    C_products: Memory
    B_rows: Memory
    C_rows: Memory
    dB_rows: Memory
    dC_rows: Memory


@numba.njit
def _zero(rows: Memory, size: int) -> None:
    for i in range(size):
        rows[i] = 0.0


@numba.njit
def _gradient_pointers(gradients: Gradients) -> Gradients:
    return Gradients(
        view_pointer(gradients.u),
        view_pointer(gradients.delta),
        pointer(gradients.A),
        view_pointer(gradients.B),
        view_pointer(gradients.C),
        pointer(gradients.D),
        view_pointer(gradients.z),
        pointer(gradients.bias),
        pointer(gradients.state),
    )


@numba.njit
def _find_starts(
    plan: Plan, inputs: Inputs, scratch: _Scratch, task: int, begin: int, count: int, starts: Memory
) -> None:
    """Fill ``starts`` (count, blocks, N, 16), whose first row is there, with what each of the chunks starts from."""
    sequence, _, group, first, last = part_of(plan, task)
    size = plan.state * LANES
    row = (last - first) * size
    for chunk in range(count - 1):
        step = begin + chunk * plan.chunk
        if not plan.B_fixed:
            read_rows(plan, scratch.B_rows, inputs.B, sequence, group // plan.B_share, step, plan.chunk)
        for block in range(first, last):
            read_step_sizes(plan, scratch.dt, inputs, sequence, block, step, plan.chunk)
            read_tile(plan, scratch.x, inputs.u, sequence, block, step, plan.chunk)
            at = chunk * row + (block - first) * size
            copy(starts, at, starts, at + row, size)
            _advance(plan, inputs, scratch, sequence, block, step, starts, at + row)


@numba.njit
def _advance(
    plan: Plan,
    inputs: Inputs,
    scratch: _Scratch,
    sequence: int,
    block: int,
    begin: int,
    state: Memory,
    at: int,
) -> None:
    """Run a whole chunk of a block forwards, for the state at its end alone."""
    A, B, marks, dt, x, B_rows = inputs.A, inputs.B.data, inputs.marks, scratch.dt, scratch.x, scratch.B_rows
    size = plan.state * LANES
    constants = block * size
    for t in range(plan.chunk):
        mark = mark_at(plan, marks, sequence, begin + t)
        if mark == PADDING:
            continue
        if mark == RESET:
            clear(state, at, size)
        dt_t = load(dt, t * LANES)
        input_t = dt_t * load(x, t * LANES)
        for n in range(plan.state):
            i, j = n * LANES, t * plan.state + n
            decay = exp2(dt_t * load(A, constants + i))
            B_tn = load(B, constants + i) if plan.B_fixed else splat_at(B_rows, j)
            store(state, at + i, fma(decay, load(state, at + i), input_t * B_tn))


@numba.njit
def _keep(
    plan: Plan,
    inputs: Inputs,
    scratch: _Scratch,
    sequence: int,
    block: int,
    begin: int,
    steps: int,
    state: Memory,
    at: int,
) -> None:
    """Run a chunk of a block forwards, keeping decays and decayed states, and for the gate's gradient sum_n C h."""
    A, B, C, marks, y = inputs.A, inputs.B.data, inputs.C.data, inputs.marks, scratch.y
    dt, x, B_rows, C_rows = scratch.dt, scratch.x, scratch.B_rows, scratch.C_rows
    decays, carries = scratch.decays, scratch.carried
    size = plan.state * LANES
    constants, zero = block * size, splat_as(A, 0.0)
    for t in range(steps):
        mark = mark_at(plan, marks, sequence, begin + t)
        if mark == PADDING:
            continue
        if mark == RESET:
            clear(state, at, size)
        dt_t = load(dt, t * LANES)
        input_t, y_t = dt_t * load(x, t * LANES), zero
        for n in range(plan.state):
            i, j = n * LANES, t * plan.state + n
            decay = exp2(dt_t * load(A, constants + i))
            B_tn = load(B, constants + i) if plan.B_fixed else splat_at(B_rows, j)
            carried = decay * load(state, at + i)
            h = fma(input_t, B_tn, carried)
            store(decays, t * size + i, decay)
            store(carries, t * size + i, carried)
            store(state, at + i, h)
            if plan.gated:
                C_tn = load(C, constants + i) if plan.C_fixed else splat_at(C_rows, j)
                y_t = fma(h, C_tn, y_t)
        store(y, t * LANES, y_t)


@numba.njit
def _ungate(inputs: Inputs, scratch: _Scratch, block: int, steps: int) -> None:
    """Turn ``scratch.dy`` into the gradient of the ungated output, and ``scratch.y`` into that of the gate."""
    dy, gate, x, y = scratch.dy, scratch.gate, scratch.x, scratch.y
    weight, one = load(inputs.D, block * LANES), splat_as(x, 1.0)
    for i in range(0, steps * LANES, LANES):
        dy_t, z_t = load(dy, i), load(gate, i)
        sigma = sigmoid(z_t)
        ungated = fma(weight, load(x, i), load(y, i))
        store(y, i, dy_t * ungated * (sigma * fma(z_t, one - sigma, one)))
        store(dy, i, dy_t * (z_t * sigma))


@numba.njit
def _add_products(plan: Plan, is_fixed: int, whole: Memory, at: int, rows: Memory, t: int, products: Memory) -> None:
    """Add ``products`` (N, 16) to the gradient of a constant matrix, or their sums over lanes to row t of a chunk."""
    if is_fixed:
        for i in range(0, plan.state * LANES, LANES):
            store(whole, at + i, load(whole, at + i) + load(products, i))
        return
    full = plan.state // LANES * LANES
    for n in range(0, full, LANES):
        place = t * plan.state + n
        store(rows, place, load(rows, place) + row_totals(products, n * LANES))
    for n in range(full, plan.state):
        rows[t * plan.state + n] += total(load(products, n * LANES))


@numba.njit
def _differentiate(
    plan: Plan,
    inputs: Inputs,
    gradients: Gradients,
    scratch: _Scratch,
    sequence: int,
    block: int,
    begin: int,
    steps: int,
) -> None:
    """Run a chunk of a block backwards: put the gradients of u and of the step sizes in place of their values."""
    size, number = plan.state * LANES, block_number(plan, sequence, block)
    constants, states = block * size, number * size
    A, B, C, marks = inputs.A, inputs.B.data, inputs.C.data, inputs.marks
    dA, dB, dC, carry = gradients.A, gradients.B.data, gradients.C.data, gradients.state
    dt, x, dy, _, y, decays, carries, B_products, C_products, B_rows, C_rows, dB_rows, dC_rows = scratch
    weight = load(inputs.D, block * LANES)
    zero, ln2 = splat_as(A, 0.0), splat_as(A, LN2)
    dweight = load(gradients.D, number * LANES)
    for t in range(steps - 1, -1, -1):
        mark = mark_at(plan, marks, sequence, begin + t)
        if mark == PADDING:
            store(dt, t * LANES, zero)
            store(x, t * LANES, zero)
            store(y, t * LANES, zero)
            continue
        dt_t, u_t, dy_t = load(dt, t * LANES), load(x, t * LANES), load(dy, t * LANES)
        input_t = dt_t * u_t
        by_input, by_decay = zero, zero
        for n in range(plan.state):
            i, j = n * LANES, t * plan.state + n
            B_tn = load(B, constants + i) if plan.B_fixed else splat_at(B_rows, j)
            C_tn = load(C, constants + i) if plan.C_fixed else splat_at(C_rows, j)
            carried = load(carries, t * size + i)
            g = fma(dy_t, C_tn, load(carry, states + i))
            g_carried = g * carried
            by_input = fma(g, B_tn, by_input)
            by_decay = fma(g_carried, load(A, constants + i), by_decay)
            store(dA, states + i, fma(g_carried, dt_t, load(dA, states + i)))
            store(carry, states + i, g * load(decays, t * size + i))
            store(B_products, i, g * input_t)
            store(C_products, i, dy_t * fma(input_t, B_tn, carried))
        if mark == RESET:
            clear(carry, states, size)
        _add_products(plan, plan.B_fixed, dB, states, dB_rows, t, B_products)
        _add_products(plan, plan.C_fixed, dC, states, dC_rows, t, C_products)
        dweight = fma(dy_t, u_t, dweight)
        store(dt, t * LANES, fma(u_t, by_input, ln2 * by_decay))
        store(x, t * LANES, fma(dt_t, by_input, weight * dy_t))
    store(gradients.D, number * LANES, dweight)


@numba.njit
def _to_delta(
    plan: Plan,
    inputs: Inputs,
    gradients: Gradients,
    scratch: _Scratch,
    sequence: int,
    block: int,
    begin: int,
    steps: int,
) -> None:
    """Turn the gradient of the step sizes into that of delta, and add it up for the bias."""
    marks, ddt, delta = inputs.marks, scratch.dt, scratch.gate
    place = block_number(plan, sequence, block) * LANES
    if plan.softplus:
        shift = load(inputs.bias, block * LANES)
        read_tile(plan, delta, inputs.delta, sequence, block, begin, steps)
        for t in range(steps):
            if mark_at(plan, marks, sequence, begin + t) != PADDING:
                slope = softplus_slope(load(delta, t * LANES) + shift)
                store(ddt, t * LANES, load(ddt, t * LANES) * slope)
    sums = load(gradients.bias, place)
    for i in range(0, steps * LANES, LANES):
        sums = sums + load(ddt, i)
    store(gradients.bias, place, sums)


@numba.njit
def _chunk_backward(
    plan: Plan,
    inputs: Inputs,
    gradients: Gradients,
    scratch: _Scratch,
    task: int,
    grad_y: View,
    begin: int,
    state: Memory,
    at: int,
) -> None:
    """Run a chunk of all blocks of a task; the states (blocks, N, 16) it starts from stand from ``at`` on."""
    sequence, part, group, first, last = part_of(plan, task)
    steps = min(plan.chunk, plan.length - begin)
    if not plan.B_fixed:
        read_rows(plan, scratch.B_rows, inputs.B, sequence, group // plan.B_share, begin, steps)
        _zero(scratch.dB_rows, plan.state * steps)
    if not plan.C_fixed:
        read_rows(plan, scratch.C_rows, inputs.C, sequence, group // plan.C_share, begin, steps)
        _zero(scratch.dC_rows, plan.state * steps)
    for block in range(first, last):
        read_step_sizes(plan, scratch.dt, inputs, sequence, block, begin, steps)
        read_tile(plan, scratch.x, inputs.u, sequence, block, begin, steps)
        read_tile(plan, scratch.dy, grad_y, sequence, block, begin, steps)
        place = at + (block - first) * plan.state * LANES
        _keep(plan, inputs, scratch, sequence, block, begin, steps, state, place)
        if plan.gated:
            read_tile(plan, scratch.gate, inputs.z, sequence, block, begin, steps)
            _ungate(inputs, scratch, block, steps)
        _differentiate(plan, inputs, gradients, scratch, sequence, block, begin, steps)
        _to_delta(plan, inputs, gradients, scratch, sequence, block, begin, steps)
        write_tile(plan, scratch.x, gradients.u, sequence, block, begin, steps)
        write_tile(plan, scratch.dt, gradients.delta, sequence, block, begin, steps)
        if plan.gated:
            write_tile(plan, scratch.y, gradients.z, sequence, block, begin, steps)
    if not plan.B_fixed:
        write_rows(plan, scratch.dB_rows, gradients.B, sequence, part, begin, steps)
    if not plan.C_fixed:
        write_rows(plan, scratch.dC_rows, gradients.C, sequence, part, begin, steps)


@compile_kernel(tiles.__file__, cpu_plan.__file__)
def scan_backward(
    counter: Memory,
    plan: Plan,
    inputs: Inputs,
    initial: Memory,
    checkpoints: Memory,
    grad_y: View,
    gradients: Gradients,
) -> None:
    """Run tasks of the backward pass until none is left.

    Args:
        counter: The next task's number, shared by all threads.
        plan: The cut and the options.
        inputs: What was scanned.
        initial: Initial states (B, K, N, 16).
        checkpoints: States after each ``plan.every`` steps, (B, S, K, N, 16).
        grad_y: The gradient of the output.
        gradients: Where to write.
    """
    tile, row, size = plan.chunk * LANES, plan.chunk * plan.state, plan.state * LANES
    chunks = -(-plan.length // plan.chunk)
    span = min(chunks, plan.every // plan.chunk) if plan.every > 0 else chunks
    buffers = aligned(5 * tile + 2 * plan.chunk * size + 2 * size + 4 * row, initial)
    opening_states = aligned(span * plan.task_blocks * size, initial)
    tile_0 = pointer(buffers)
    kept_0 = moved(tile_0, 5 * tile)
    product_0 = moved(kept_0, 2 * plan.chunk * size)
    row_0 = moved(product_0, 2 * size)
    scratch = _Scratch(
        tile_0,
        moved(tile_0, tile),
        moved(tile_0, 2 * tile),
        moved(tile_0, 3 * tile),
        moved(tile_0, 4 * tile),
        kept_0,
        moved(kept_0, plan.chunk * size),
        product_0,
        moved(product_0, size),
        row_0,
        moved(row_0, row),
        moved(row_0, 2 * row),
        moved(row_0, 3 * row),
    )
    scanned, found, grad = input_pointers(inputs), _gradient_pointers(gradients), view_pointer(grad_y)
    before, kept, starts = pointer(initial), pointer(checkpoints), pointer(opening_states)
    task = take(counter)
    while task < plan.tasks:
        sequence, _, _, first, last = part_of(plan, task)
        for upper in range(-(-chunks // span) - 1, -1, -1):
            for block in range(first, last):
                at = (block - first) * size
                if upper > 0:
                    copy(kept, checkpoint_place(plan, sequence, upper, block), starts, at, size)
                else:
                    copy(before, block_number(plan, sequence, block) * size, starts, at, size)
            count = min(span, chunks - upper * span)
            opening = upper * span * plan.chunk
            _find_starts(plan, scanned, scratch, task, opening, count, starts)
            for chunk in range(count - 1, -1, -1):
                place = chunk * (last - first) * size
                begin = opening + chunk * plan.chunk
                _chunk_backward(plan, scanned, found, scratch, task, grad, begin, starts, place)
        task = take(counter)
    keep(buffers)
    keep(opening_states)
