"""The selective scan's forward pass, compiled for the CPU; see `cpu_plan` for the layout."""

from __future__ import annotations

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
    sigmoid,
    splat_as,
    splat_at,
    store,
    take,
)
from mamba_kernels.tiles import aligned


class _Scratch(NamedTuple):
    """Buffers of one thread."""

    dt: Memory
    x: Memory
    gate: Memory
    B_rows: Memory
    C_rows: Memory


@numba.njit
def _scan_chunk(
    plan: Plan, inputs: Inputs, scratch: _Scratch, sequence: int, block: int, begin: int, steps: int, state: Memory
) -> None:
    """Run a chunk of a block: replace u in ``scratch.x`` by y, and the state by the one after the chunk."""
    A, B, C, marks = inputs.A, inputs.B.data, inputs.C.data, inputs.marks
    dt, x, gate, B_rows, C_rows = scratch
    size = plan.state * LANES
    constants, states = block * size, block_number(plan, sequence, block) * size
    weight, zero = load(inputs.D, block * LANES), splat_as(A, 0.0)
    for t in range(steps):
        mark = mark_at(plan, marks, sequence, begin + t)
        if mark == PADDING:
            store(x, t * LANES, zero)
            continue
        if mark == RESET:
            clear(state, states, size)
        dt_t, u_t = load(dt, t * LANES), load(x, t * LANES)
        input_t, y_t = dt_t * u_t, weight * u_t
        for n in range(plan.state):
            i, j = n * LANES, t * plan.state + n
            decay = exp2(dt_t * load(A, constants + i))
            B_tn = load(B, constants + i) if plan.B_fixed else splat_at(B_rows, j)
            C_tn = load(C, constants + i) if plan.C_fixed else splat_at(C_rows, j)
            h = fma(decay, load(state, states + i), input_t * B_tn)
            store(state, states + i, h)
            y_t = fma(h, C_tn, y_t)
        if plan.gated:
            z_t = load(gate, t * LANES)
            y_t = y_t * (z_t * sigmoid(z_t))
        store(x, t * LANES, y_t)


@compile_kernel(tiles.__file__, cpu_plan.__file__)
def scan_forward(counter: Memory, plan: Plan, inputs: Inputs, state: Memory, checkpoints: Memory, y: View) -> None:
    """Run tasks until none is left: write y and the checkpoints, and turn ``state`` into the last state.

    Args:
        counter: The next task's number, shared by all threads.
        plan: The cut and the options.
        inputs: What is scanned.
        state: Initial states (B, K, N, 16), replaced by the last ones.
        checkpoints: States after each ``plan.every`` steps, (B, S, K, N, 16).
        y: The output, in the layout of the input.
    """
    tile, row, size = plan.chunk * LANES, plan.chunk * plan.state, plan.state * LANES
    buffers = aligned(3 * tile + 2 * row, state)
    start = pointer(buffers)
    rows = moved(start, 3 * tile)
    scratch = _Scratch(start, moved(start, tile), moved(start, 2 * tile), rows, moved(rows, row))
    scanned, target = input_pointers(inputs), view_pointer(y)
    states, kept = pointer(state), pointer(checkpoints)
    task = take(counter)
    while task < plan.tasks:
        sequence, _, group, first, last = part_of(plan, task)
        for begin in range(0, plan.length, plan.chunk):
            steps = min(plan.chunk, plan.length - begin)
            if not plan.B_fixed:
                read_rows(plan, scratch.B_rows, scanned.B, sequence, group // plan.B_share, begin, steps)
            if not plan.C_fixed:
                read_rows(plan, scratch.C_rows, scanned.C, sequence, group // plan.C_share, begin, steps)
            for block in range(first, last):
                read_step_sizes(plan, scratch.dt, scanned, sequence, block, begin, steps)
                read_tile(plan, scratch.x, scanned.u, sequence, block, begin, steps)
                if plan.gated:
                    read_tile(plan, scratch.gate, scanned.z, sequence, block, begin, steps)
                _scan_chunk(plan, scanned, scratch, sequence, block, begin, steps, states)
                write_tile(plan, scratch.x, target, sequence, block, begin, steps)
                done = begin + steps
                if plan.every > 0 and done % plan.every == 0 and done < plan.length:
                    place = checkpoint_place(plan, sequence, done // plan.every, block)
                    copy(states, block_number(plan, sequence, block) * size, kept, place, size)
        task = take(counter)
    keep(buffers)
