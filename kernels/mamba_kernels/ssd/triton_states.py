"""The GPU kernels of SSD's states: those that enter each chunk, and the gradients of those that leave it.

Both are walks of the same kind. Forward a chunk adds B^T (x dt decay(to its end)); backward, C^T (dy decay(from its
start)). Where there are too few heads to fill a GPU, sequences are cut into parts: a first walk from zero finds what
each part adds, the states are carried over the parts, and a second walk starts from them.

Dimensions: Q positions of a chunk, N state, P channels of a block of a head's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.ssd.triton_steps import (
    END,
    SIZE,
    START,
    at_head,
    at_sequence,
    load_state,
    load_tile,
    rows_of_chunk,
    silu,
    store_state,
)

# Parts whose states are carried on at once.
AT_ONCE = tl.constexpr(8)


@triton.jit
def walk_states(
    x, B, dout, C, z, marks, order, steps, entering, dleaving, ends, decays, kept, dentering,
    length, heads, reading_heads, shared, width, states, padded, field, part_chunks, direction_ends, direction_kept,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, dout_b, dout_k, dout_l, dout_h, dout_p, C_b, C_k, C_l, C_g, C_n,
    z_b, z_l, z_h, z_p,
    KEEP: tl.constexpr, HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr, HAS_ENTERING: tl.constexpr,
    HAS_DLEAVING: tl.constexpr, IN_PARTS: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Walk a part of the chunks of some channels of a head; the grid's third axis is the direction.

    With ``KEEP`` write the states of all chunks; else what the part adds, and how far it decays.
    """
    if tl.program_id(2) == 0:
        walk(
            x, B, z, marks, order, steps, entering, ends, decays, kept, dentering,
            length, heads, reading_heads, shared, width, states, padded, field, part_chunks,
            x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, z_b, z_l, z_h, z_p,
            False, KEEP, False, HAS_MARKS, HAS_ENTERING, IN_PARTS, REVERSE, ROUTED, EXACT, WIDE, ALL_N, ALL_P, OPERAND,
            PRECISION, CHUNK, N_PAD, BLOCK, BLOCKS,
        )  # fmt: skip
    else:
        walk(
            dout, C, z, marks, order, steps, dleaving, ends + direction_ends, decays, kept + direction_kept, dentering,
            length, heads, reading_heads, shared, width, states, padded, field, part_chunks,
            dout_b, dout_k, dout_l, dout_h, dout_p, C_b, C_k, C_l, C_g, C_n, z_b, z_l, z_h, z_p,
            True, KEEP, HAS_Z, HAS_MARKS, HAS_DLEAVING, IN_PARTS, REVERSE, ROUTED, EXACT, WIDE, ALL_N, ALL_P, OPERAND,
            PRECISION, CHUNK, N_PAD, BLOCK, BLOCKS,
        )  # fmt: skip


@triton.jit
def walk(
    x, B, z, marks, order, steps, entering, ends, decays, kept, leaving,
    length, heads, reading_heads, shared, width, states, padded, field, part_chunks,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, z_b, z_l, z_h, z_p,
    BACKWARD: tl.constexpr, KEEP: tl.constexpr, HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr,
    HAS_ENTERING: tl.constexpr, IN_PARTS: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Walk one direction; backward x, B and ``entering`` are dout, C and the gradient of the state that leaves."""
    program = tl.program_id(0)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    block = program % BLOCKS
    head = program // BLOCKS % heads
    batch = (program // BLOCKS // heads).to(tl.int64)
    row = batch * heads + head
    q = tl.arange(0, CHUNK)
    n = tl.arange(0, N_PAD)
    p = block * BLOCK + tl.arange(0, BLOCK)
    on_n, on_p = n < states, p < width
    at_n, at_p = n, p
    if WIDE:
        at_n, at_p = n.to(tl.int64), p.to(tl.int64)
    head64 = head.to(tl.int64)
    x = at_head(x, batch, head64, reading_heads, x_b, x_k, x_h, ROUTED)
    B = at_head(B, batch, head64 // shared, reading_heads // shared, B_b, B_k, B_g, ROUTED)
    steps += row * padded
    marks = at_sequence(marks, batch, head64, reading_heads, length, ROUTED)
    order = at_sequence(order, batch, head64, reading_heads, length, ROUTED)
    if HAS_Z:
        z += batch * z_b + head64 * z_h
    tile = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    at_part = ((batch * parts + part) * heads + head) * BLOCKS + block
    chunks = padded // CHUNK

    if KEEP and IN_PARTS:
        state = tl.load(ends + at_part * (N_PAD * BLOCK) + tile)
    elif KEEP and HAS_ENTERING:
        state = load_state(entering + row * width * states, n, p, states, width)
    else:
        state = tl.zeros([N_PAD, BLOCK], tl.float32)
    decayed = tl.full([], 1.0, tl.float32)
    begin, stop = part * part_chunks, min((part + 1) * part_chunks, chunks)
    for i in range(begin, stop):
        chunk = i
        if BACKWARD:
            chunk = begin + stop - 1 - i
        first, step, _, real = rows_of_chunk(marks, order, chunk, length, CHUNK, REVERSE, ROUTED, HAS_MARKS, WIDE)
        B_QN = load_tile(B + first * B_l, step, B_l, at_n, B_n, real, on_n, ALL_N).to(OPERAND)
        x_QP = load_tile(x + first * x_l, step, x_l, at_p, x_p, real, on_p, ALL_P).to(tl.float32)
        if HAS_Z:
            x_QP *= silu(load_tile(z + first * z_l, step, z_l, at_p, z_p, real, on_p, ALL_P).to(tl.float32))
        at_steps = steps + chunk * CHUNK
        if BACKWARD:
            weight = tl.load(at_steps + START * field + q)
        else:
            weight = tl.load(at_steps + SIZE * field + q) * tl.load(at_steps + END * field + q)
        decay = tl.load(at_steps + START * field + CHUNK - 1)
        if KEEP:
            at = ((batch * chunks + chunk) * heads + head) * BLOCKS + block
            tl.store(kept + at * (N_PAD * BLOCK) + tile, state.to(OPERAND))
        else:
            decayed *= decay
        state *= decay
        state = tl.dot(tl.trans(B_QN), (x_QP * weight[:, None]).to(OPERAND), state, input_precision=PRECISION)

    if not KEEP:
        tl.store(ends + at_part * (N_PAD * BLOCK) + tile, state)
        if not BACKWARD:
            tl.store(decays + (batch * parts + part) * heads + head, decayed)
    elif BACKWARD:
        if part == 0:
            store_state(leaving + row * width * states, state, n, p, states, width)


@triton.jit
def carry_states(
    entering, dleaving, ends, decays, heads, width, states, parts, direction_ends,
    HAS_ENTERING: tl.constexpr, HAS_DLEAVING: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Replace what each part adds by the state that enters it; the grid's third axis is the direction."""
    if tl.program_id(2) == 0:
        carry(entering, ends, decays, heads, width, states, parts, False, HAS_ENTERING, N_PAD, BLOCK, BLOCKS, ROWS)
    else:
        ends += direction_ends
        carry(dleaving, ends, decays, heads, width, states, parts, True, HAS_DLEAVING, N_PAD, BLOCK, BLOCKS, ROWS)


@triton.jit
def carry(
    entering, ends, decays, heads, width, states, parts,
    BACKWARD: tl.constexpr, HAS_ENTERING: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Carry some rows of the states over the parts, in one direction.

    Parts are read `AT_ONCE`: one after the other, each would wait for memory before the next is asked for.
    """
    program = tl.program_id(0)
    block = program % BLOCKS
    head = program // BLOCKS % heads
    batch = (program // BLOCKS // heads).to(tl.int64)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    if HAS_ENTERING:
        entering += (batch * heads + head) * width * states
        state = load_state(entering, n, block * BLOCK + column, states, width)
    else:
        state = tl.zeros([ROWS, BLOCK], tl.float32)
    ends += block * (N_PAD * BLOCK) + n[:, None] * BLOCK + column[None, :]
    for first in range(0, parts, AT_ONCE):
        decay = ()
        added = ()
        for k in tl.static_range(AT_ONCE):
            part = (parts - 1 - first - k) if BACKWARD else first + k
            at_part = (batch * parts + part) * heads + head
            inside = first + k < parts
            decay = decay + (tl.load(decays + at_part, mask=inside, other=0.0),)
            added = added + (tl.load(ends + at_part * (BLOCKS * N_PAD * BLOCK), mask=inside, other=0.0),)
        for k in tl.static_range(AT_ONCE):
            part = (parts - 1 - first - k) if BACKWARD else first + k
            at_part = (batch * parts + part) * heads + head
            tl.store(ends + at_part * (BLOCKS * N_PAD * BLOCK), state, mask=first + k < parts)
            state = decay[k] * state + added[k]
