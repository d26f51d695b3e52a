"""The GPU kernel of SSD's output: a program walks the chunks of one head, the state in registers.

Position i of a chunk receives from position j <= i the part (C_i . B_j) decay(j, i) dt_j x_j, and from the state h that
enters the chunk C_i . h decay(start, i) ("Transformers are SSMs", section 6).

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
    load_decays,
    load_state,
    load_tile,
    rows_of_chunk,
    silu,
    store_state,
    store_tile,
)


@triton.jit
def ssd_forward(
    x, B, C, D, z, marks, order, steps, entering, carried, y, ungated, leaving,
    length, heads, reading_heads, shared, width, states, padded, field, part_chunks,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, C_b, C_k, C_l, C_g, C_n, D_h, D_p, z_b, z_l, z_h, z_p,
    y_b, y_k, y_l, y_h, y_p,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr, HAS_ENTERING: tl.constexpr,
    IN_PARTS: tl.constexpr, SAVE: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr, EXACT: tl.constexpr,
    WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write a part of the output of some channels of a head, and from the last part the state that leaves.

    ``shared`` heads read one group of B and C; with ``IN_PARTS`` the states that enter the parts are ``carried``.
    """
    program = tl.program_id(0)
    part = tl.program_id(1)
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
    group = head64 // shared
    reading_groups = reading_heads // shared
    x = at_head(x, batch, head64, reading_heads, x_b, x_k, x_h, ROUTED)
    B = at_head(B, batch, group, reading_groups, B_b, B_k, B_g, ROUTED)
    C = at_head(C, batch, group, reading_groups, C_b, C_k, C_g, ROUTED)
    y = at_head(y, batch, head64, reading_heads, y_b, y_k, y_h, ROUTED)
    steps += row * padded
    marks = at_sequence(marks, batch, head64, reading_heads, length, ROUTED)
    order = at_sequence(order, batch, head64, reading_heads, length, ROUTED)
    if HAS_Z:
        z += batch * z_b + head64 * z_h
        if SAVE:
            ungated += batch * y_b + head64 * y_h
    if HAS_D:
        skip = tl.load(D + head64 * D_h + at_p * D_p, mask=on_p, other=0.0).to(tl.float32)

    if IN_PARTS:
        at = ((batch * tl.num_programs(1) + part) * heads + head) * BLOCKS + block
        state = tl.load(carried + at * (N_PAD * BLOCK) + n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :])
    elif HAS_ENTERING:
        state = load_state(entering + row * width * states, n, p, states, width)
    else:
        state = tl.zeros([N_PAD, BLOCK], tl.float32)

    chunks = padded // CHUNK
    for chunk in range(part * part_chunks, min((part + 1) * part_chunks, chunks)):
        first, step, exists, real = rows_of_chunk(marks, order, chunk, length, CHUNK, REVERSE, ROUTED, HAS_MARKS, WIDE)
        B_QN = load_tile(B + first * B_l, step, B_l, at_n, B_n, real, on_n, ALL_N).to(OPERAND)
        C_QN = load_tile(C + first * C_l, step, C_l, at_n, C_n, real, on_n, ALL_N).to(OPERAND)
        x_QP = load_tile(x + first * x_l, step, x_l, at_p, x_p, real, on_p, ALL_P).to(OPERAND)
        at_steps = steps + chunk * CHUNK
        size = tl.load(at_steps + SIZE * field + q)
        weight = size * tl.load(at_steps + END * field + q)

        score = tl.dot(C_QN, tl.trans(B_QN), input_precision=PRECISION)
        score *= load_decays(at_steps, field, q[:, None], q[None, :], EXACT) * size[None, :]
        y_QP = tl.dot(C_QN, state.to(OPERAND), input_precision=PRECISION)
        y_QP *= tl.load(at_steps + START * field + q)[:, None]
        y_QP = tl.dot(score.to(OPERAND), x_QP, y_QP, input_precision=PRECISION)
        state *= tl.load(at_steps + START * field + CHUNK - 1)
        weighted = (x_QP.to(tl.float32) * weight[:, None]).to(OPERAND)
        state = tl.dot(tl.trans(B_QN), weighted, state, input_precision=PRECISION)

        if HAS_D:
            y_QP += x_QP.to(tl.float32) * skip[None, :]
        if HAS_Z:
            if SAVE:
                store_tile(ungated + first * y_l, y_QP, step, y_l, at_p, y_p, exists, on_p, ALL_P)
            gate = load_tile(z + first * z_l, step, z_l, at_p, z_p, real, on_p, ALL_P).to(tl.float32)
            y_QP *= silu(gate)
        store_tile(y + first * y_l, y_QP, step, y_l, at_p, y_p, exists, on_p, ALL_P)

    if part == tl.num_programs(1) - 1:
        store_state(leaving + row * width * states, state, n, p, states, width)
