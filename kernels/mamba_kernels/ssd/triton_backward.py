"""The GPU kernels of SSD's gradients: of a chunk of one head, and of a chunk's B and C, which a group of heads shares.

With M_ij = (C_i . B_j) decay(j, i) dt_j (dy_i . x_j), the gradient of the logarithm of the decay at t sums all that
crosses it: the M_ij with j < t <= i, what the state that enters gives to positions from t on, what positions before t
give to the state that leaves, and what of the former is left in the latter. None of these sums has a subtraction: where
decays are strong, what is left of one would be rounding.

The gradients of B and C come by dy_i . x_j decay(j, i) dt_j, which `gradients_of_heads` leaves and
`gradients_of_groups` adds up over heads and multiplies by C and B once, and by products with the states that enter a
chunk and the gradients of those that leave it.

Dimensions: Q positions of a chunk, N state, P channels of a block of a head's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.ssd.triton_steps import (
    END,
    RESETS,
    SIZE,
    SLOPE,
    START,
    at_head,
    at_sequence,
    load_decays,
    load_tile,
    offsets,
    rows_of_chunk,
    silu,
    store_tile,
)
from mamba_kernels.triton_math import silu_slope


@triton.jit
def load_dy(
    dout, z, row, dout_l, z_l, column, dout_p, z_p, on_row, on_column, HAS_Z: tl.constexpr, ALL_P: tl.constexpr
):  # fmt: skip
    """Return a tile of the gradient of the output before the gate."""
    dy_QP = load_tile(dout, row, dout_l, column, dout_p, on_row, on_column, ALL_P)
    if HAS_Z:
        dy_QP = dy_QP.to(tl.float32) * silu(
            load_tile(z, row, z_l, column, z_p, on_row, on_column, ALL_P).to(tl.float32)
        )
    return dy_QP


@triton.jit
def gradients_of_heads(
    x, B, C, A, D, z, marks, order, steps, kept, dout, ungated, dx, ddt, dz, dscores, sums,
    length, heads, reading_heads, shared, width, states, padded, field, direction_kept,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, C_b, C_k, C_l, C_g, C_n, A_h, D_h, D_p, z_b, z_l, z_h, z_p,
    dout_b, dout_k, dout_l, dout_h, dout_p, y_b, y_l, y_h, y_p, dx_b, dx_k, dx_l, dx_h, dx_p,
    ddt_b, ddt_k, ddt_l, ddt_h, dz_b, dz_l, dz_h, dz_p,
    HAS_D: tl.constexpr, D_VARIES: tl.constexpr, HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr, REVERSE: tl.constexpr,
    ROUTED: tl.constexpr, EXACT: tl.constexpr, WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x, dt and z in a chunk of a head, and what is left to `gradients_of_groups`.

    ``dscores`` is (B, chunks, H, Q, Q), ``sums`` (B, chunks, H, terms): sums for A, the bias, and D.
    """
    program = tl.program_id(0)
    chunks = padded // CHUNK
    head = (program % heads).to(tl.int64)
    group = head // shared
    chunk = program // heads % chunks
    batch = (program // heads // chunks).to(tl.int64)
    q = tl.arange(0, CHUNK)
    n = tl.arange(0, SLICE)
    at_n = offsets(SLICE, False, WIDE)
    marks = at_sequence(marks, batch, head, reading_heads, length, ROUTED)
    order = at_sequence(order, batch, head, reading_heads, length, ROUTED)
    first, step, exists, real = rows_of_chunk(marks, order, chunk, length, CHUNK, REVERSE, ROUTED, HAS_MARKS, WIDE)
    x = at_head(x, batch, head, reading_heads, x_b, x_k, x_h, ROUTED) + first * x_l
    dout = at_head(dout, batch, head, reading_heads, dout_b, dout_k, dout_h, ROUTED) + first * dout_l
    dx = at_head(dx, batch, head, reading_heads, dx_b, dx_k, dx_h, ROUTED) + first * dx_l
    ddt = at_head(ddt, batch, head, reading_heads, ddt_b, ddt_k, ddt_h, ROUTED) + first * ddt_l
    if HAS_Z:
        z += batch * z_b + head * z_h + first * z_l
        dz += batch * dz_b + head * dz_h + first * dz_l
        ungated += batch * y_b + head * y_h + first * y_l
    place = (batch * chunks + chunk) * heads + head
    at_steps = steps + (batch * heads + head) * padded + chunk * CHUNK
    at_sums = sums + place * (2 + (width if D_VARIES else 1))
    size = tl.load(at_steps + SIZE * field + q)

    # Loads come first, so that they are under way together. Rows are the earlier positions here, columns the later
    # ones: so no product needs a transposed score.
    p = tl.arange(0, BLOCK)
    at_p = offsets(BLOCK, False, WIDE)
    tile = n[:, None] * BLOCK + p[None, :]
    kept += place * BLOCKS * (N_PAD * BLOCK)
    B = at_head(B, batch, group, reading_heads // shared, B_b, B_k, B_g, ROUTED) + first * B_l
    C = at_head(C, batch, group, reading_heads // shared, C_b, C_k, C_g, ROUTED) + first * C_l
    x_QP = load_tile(x, step, x_l, at_p, x_p, real, p < width, ALL_P).to(OPERAND)
    dy_QP = load_dy(dout, z, step, dout_l, z_l, at_p, dout_p, z_p, real, p < width, HAS_Z, ALL_P).to(OPERAND)
    if SLICE == N_PAD:
        B_QN = load_tile(B, step, B_l, at_n, B_n, real, n < states, ALL_N).to(OPERAND)
        C_QN = load_tile(C, step, C_l, at_n, C_n, real, n < states, ALL_N).to(OPERAND)
        if BLOCKS == 1 and not HAS_Z:  # With a gate registers do not suffice.
            state = tl.load(kept + tile)
            dstate = tl.load(kept + direction_kept + tile)
    to_end = tl.load(at_steps + END * field + q)
    from_start = tl.load(at_steps + START * field + q)
    through = tl.load(at_steps + START * field + CHUNK - 1)
    slope = tl.load(at_steps + SLOPE * field + q)
    rate = tl.load(A + head * A_h).to(tl.float32)
    # Resets do not depend on step sizes.
    resets = tl.load(at_steps + RESETS * field + q)
    before = tl.load(at_steps + RESETS * field + q - 1, mask=q > 0, other=0.0)
    goes_on = tl.where(resets == before, 1.0, 0.0)
    decay = load_decays(at_steps, field, q[None, :], q[:, None], EXACT)

    pairs = tl.dot(x_QP, tl.trans(dy_QP), input_precision=PRECISION)
    for block in range(1, BLOCKS):
        on_p = block * BLOCK + p < width
        x_QP = load_tile(x, step, x_l, block * BLOCK + at_p, x_p, real, on_p, ALL_P).to(OPERAND)
        dy_QP = load_dy(dout, z, step, dout_l, z_l, block * BLOCK + at_p, dout_p, z_p, real, on_p, HAS_Z, ALL_P)
        dy_QP = dy_QP.to(OPERAND)
        pairs = tl.dot(x_QP, tl.trans(dy_QP), pairs, input_precision=PRECISION)
    if SLICE == N_PAD:
        score = tl.dot(B_QN, tl.trans(C_QN), input_precision=PRECISION)
    else:
        score = tl.zeros([CHUNK, CHUNK], tl.float32)
        for first_n in range(0, N_PAD, SLICE):
            on_n = first_n + n < states
            B_QN = load_tile(B, step, B_l, first_n + at_n, B_n, real, on_n, ALL_N).to(OPERAND)
            C_QN = load_tile(C, step, C_l, first_n + at_n, C_n, real, on_n, ALL_N).to(OPERAND)
            score = tl.dot(B_QN, tl.trans(C_QN), score, input_precision=PRECISION)
    pairs *= decay * size[:, None]
    tl.store(dscores + place * (CHUNK * CHUNK) + q[:, None] * CHUNK + q[None, :], pairs.to(OPERAND))
    pairs *= score
    # In two numbers, since sums of pairs may be a hundredth of their terms.
    high = pairs.to(OPERAND)
    low = (pairs - high.to(tl.float32)).to(OPERAND)
    score = (score * decay).to(OPERAND)

    entered = tl.zeros([CHUNK], tl.float32)
    leaving = tl.zeros([CHUNK], tl.float32)
    dsize = tl.zeros([CHUNK], tl.float32)
    passing = tl.zeros([], tl.float32)
    sum_of_D = tl.zeros([], tl.float32)
    for block in range(BLOCKS):
        on_p = block * BLOCK + p < width
        here = block * BLOCK + at_p
        at = kept + block * (N_PAD * BLOCK) + tile
        if BLOCKS > 1:
            x_QP = load_tile(x, step, x_l, here, x_p, real, on_p, ALL_P).to(OPERAND)
            dy_QP = load_dy(dout, z, step, dout_l, z_l, here, dout_p, z_p, real, on_p, HAS_Z, ALL_P).to(OPERAND)
        if HAS_Z:
            gate = load_tile(z, step, z_l, here, z_p, real, on_p, ALL_P).to(tl.float32)
            dgate = load_tile(dout, step, dout_l, here, dout_p, real, on_p, ALL_P).to(tl.float32)
            dgate *= load_tile(ungated, step, y_l, here, y_p, real, on_p, ALL_P).to(tl.float32)
            store_tile(dz, dgate * silu_slope(gate), step, dz_l, here, dz_p, exists, on_p, ALL_P)
        if SLICE == N_PAD:
            if BLOCKS > 1 or HAS_Z:
                state = tl.load(at)
                dstate = tl.load(at + direction_kept)
            passing += tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
            given = tl.dot(B_QN, dstate, input_precision=PRECISION)
        else:
            given = tl.zeros([CHUNK, BLOCK], tl.float32)
            taken = tl.zeros([CHUNK, BLOCK], tl.float32)
            for first_n in range(0, N_PAD, SLICE):
                on_n = first_n + n < states
                B_QN = load_tile(B, step, B_l, first_n + at_n, B_n, real, on_n, ALL_N).to(OPERAND)
                C_QN = load_tile(C, step, C_l, first_n + at_n, C_n, real, on_n, ALL_N).to(OPERAND)
                state = tl.load(at + first_n * BLOCK)
                dstate = tl.load(at + direction_kept + first_n * BLOCK)
                passing += tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
                given = tl.dot(B_QN, dstate, given, input_precision=PRECISION)
                taken = tl.dot(C_QN, state, taken, input_precision=PRECISION)
        given *= to_end[:, None]
        leaving += tl.sum(given * x_QP.to(tl.float32), 1) * size
        dx_QP = tl.dot(score, dy_QP, given, input_precision=PRECISION)
        dsize += tl.sum(dx_QP * x_QP.to(tl.float32), 1)
        dx_QP *= size[:, None]
        if HAS_D:
            skip = tl.load(D + head * D_h + here * D_p, mask=on_p, other=0.0).to(tl.float32)
            dx_QP += dy_QP.to(tl.float32) * skip[None, :]
            skipped = tl.sum(dy_QP.to(tl.float32) * x_QP.to(tl.float32), 0)
            if D_VARIES:
                tl.store(at_sums + 2 + here, skipped, mask=on_p)
            else:
                sum_of_D += tl.sum(skipped, 0)
        store_tile(dx, dx_QP, step, dx_l, here, dx_p, exists, on_p, ALL_P)
        if SLICE == N_PAD:
            taken = tl.dot(C_QN, state, input_precision=PRECISION)
        entered += tl.sum(taken * dy_QP.to(tl.float32), 1)

    entered *= from_start
    later = tl.where(q[:, None] >= q[None, :], 1.0, 0.0).to(OPERAND)
    crossing = tl.dot(high, later, input_precision=PRECISION)
    if OPERAND == tl.bfloat16:
        crossing = tl.dot(low, later, crossing, input_precision=PRECISION)
    dlog = tl.sum(tl.where(q[:, None] < q[None, :], crossing + leaving[:, None], entered[:, None]), 0)
    dlog = (dlog + passing * through) * goes_on
    draw = (dlog * rate + dsize) * slope
    tl.store(ddt + step * ddt_l, draw.to(ddt.dtype.element_ty), mask=exists)
    tl.store(at_sums, tl.sum(dlog * size, 0))
    tl.store(at_sums + 1, tl.sum(draw, 0))
    if HAS_D and not D_VARIES:
        tl.store(at_sums + 2, sum_of_D)


@triton.jit
def gradients_of_groups(
    x, B, C, z, marks, order, steps, kept, dout, dscores, dB, dC,
    length, heads, groups, splits, reading_heads, shared, width, states, padded, field, direction_kept,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, C_b, C_k, C_l, C_g, C_n, z_b, z_l, z_h, z_p,
    dout_b, dout_k, dout_l, dout_h, dout_p, dB_b, dB_k, dB_l, dB_g, dB_n, dB_s, dC_b, dC_k, dC_l, dC_g, dC_n, dC_s,
    HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of B and C in a chunk, by the programs along the grid's second axis."""
    if tl.program_id(1) == 0:
        gradient_of_group(
            x, C, z, marks, order, steps, kept + direction_kept, dscores, dB,
            length, heads, groups, splits, reading_heads, shared, width, states, padded, field,
            x_b, x_k, x_l, x_h, x_p, C_b, C_k, C_l, C_g, C_n, z_b, z_l, z_h, z_p, dB_b, dB_k, dB_l, dB_g, dB_n, dB_s,
            False, False, HAS_MARKS, REVERSE, ROUTED, WIDE, ALL_N, ALL_P, OPERAND, PRECISION, CHUNK, N_PAD, BLOCK,
            BLOCKS,
        )  # fmt: skip
    else:
        gradient_of_group(
            dout, B, z, marks, order, steps, kept, dscores, dC,
            length, heads, groups, splits, reading_heads, shared, width, states, padded, field,
            dout_b, dout_k, dout_l, dout_h, dout_p, B_b, B_k, B_l, B_g, B_n, z_b, z_l, z_h, z_p,
            dC_b, dC_k, dC_l, dC_g, dC_n, dC_s,
            True, HAS_Z, HAS_MARKS, REVERSE, ROUTED, WIDE, ALL_N, ALL_P, OPERAND, PRECISION, CHUNK, N_PAD, BLOCK,
            BLOCKS,
        )  # fmt: skip


@triton.jit
def gradient_of_group(
    x, B, z, marks, order, steps, kept, dscores, dB,
    length, heads, groups, splits, reading_heads, shared, width, states, padded, field,
    x_b, x_k, x_l, x_h, x_p, B_b, B_k, B_l, B_g, B_n, z_b, z_l, z_h, z_p, dB_b, dB_k, dB_l, dB_g, dB_n, dB_s,
    OF_C: tl.constexpr, HAS_Z: tl.constexpr, HAS_MARKS: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr,
    WIDE: tl.constexpr, ALL_N: tl.constexpr, ALL_P: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of B; with ``OF_C`` that of C, x and B being dout and B then, and C otherwise."""
    program = tl.program_id(0)
    chunks = padded // CHUNK
    split = (program % splits).to(tl.int64)
    group = (program // splits % groups).to(tl.int64)
    chunk = program // splits // groups % chunks
    batch = (program // splits // groups // chunks).to(tl.int64)
    q = tl.arange(0, CHUNK)
    n = tl.arange(0, N_PAD)
    on_n = n < states
    at_n = offsets(N_PAD, False, WIDE)
    each = shared // splits
    head = group * shared + split * each
    marks = at_sequence(marks, batch, head, reading_heads, length, ROUTED)
    order = at_sequence(order, batch, head, reading_heads, length, ROUTED)
    first, step, exists, real = rows_of_chunk(marks, order, chunk, length, CHUNK, REVERSE, ROUTED, HAS_MARKS, WIDE)
    x = at_head(x, batch, head, reading_heads, x_b, x_k, x_h, ROUTED) + first * x_l
    if HAS_Z:
        z += batch * z_b + head * z_h + first * z_l
    tile = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    kept += ((batch * chunks + chunk) * heads + head) * (BLOCKS * N_PAD * BLOCK)
    steps += (batch * heads + head) * padded + chunk * CHUNK
    square = q[:, None] + q[None, :] * CHUNK if OF_C else q[:, None] * CHUNK + q[None, :]
    dscores += ((batch * chunks + chunk) * heads + head) * (CHUNK * CHUNK)
    dscore = tl.zeros([CHUNK, CHUNK], tl.float32)
    dB_QN = tl.zeros([CHUNK, N_PAD], tl.float32)
    for i in range(0, each * BLOCKS):
        one = tl.full([], 1, tl.int64) * (i // BLOCKS)
        at_steps = steps + one * padded
        p = i % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        on_p = p < width
        at_p = p.to(tl.int64) if WIDE else p
        x_QP = load_tile(x + one * x_h, step, x_l, at_p, x_p, real, on_p, ALL_P).to(tl.float32)
        if HAS_Z:
            x_QP *= silu(load_tile(z + one * z_h, step, z_l, at_p, z_p, real, on_p, ALL_P).to(tl.float32))
        if OF_C:
            weight = tl.load(at_steps + START * field + q)
        else:
            weight = tl.load(at_steps + SIZE * field + q) * tl.load(at_steps + END * field + q)
        state = tl.load(kept + i * (N_PAD * BLOCK) + tile)
        at_dscore = dscores + one * (CHUNK * CHUNK) + square
        if BLOCKS == 1:
            dscore += tl.load(at_dscore).to(tl.float32)
        else:
            dscore += tl.load(at_dscore, mask=(i % BLOCKS == 0) & (square >= 0), other=0.0).to(tl.float32)
        x_QP *= weight[:, None]
        dB_QN = tl.dot(x_QP.to(OPERAND), tl.trans(state), dB_QN, input_precision=PRECISION)

    B = at_head(B, batch, group, reading_heads // shared, B_b, B_k, B_g, ROUTED) + first * B_l
    B_QN = load_tile(B, step, B_l, at_n, B_n, real, on_n, ALL_N).to(OPERAND)
    dB_QN = tl.dot(dscore.to(OPERAND), B_QN, dB_QN, input_precision=PRECISION)
    dB = at_head(dB, batch, group, reading_heads // shared, dB_b, dB_k, dB_g, ROUTED) + split * dB_s + first * dB_l
    store_tile(dB, dB_QN, step, dB_l, at_n, dB_n, exists, on_n, ALL_N)


@triton.jit
def total_parameters(
    sums, dA, dbias, dD, rows, heads, width, dD_h, dD_p,
    HAS_D: tl.constexpr, D_VARIES: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add up the chunks' sums for A (H), the bias (H) and D (H) or (H, P), in a fixed order."""
    terms = 2 + (width if D_VARIES else 1)
    columns = heads * terms
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    term = column % terms
    head = column // terms
    wanted = (column < columns) & ((term < 2) | HAS_D)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        at = sums + row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(at, mask=(row < rows)[:, None] & wanted[None, :], other=0.0)
    result = tl.sum(total, 0)
    tl.store(dA + head, result.to(dA.dtype.element_ty), mask=wanted & (term == 0))
    if HAS_BIAS:
        tl.store(dbias + head, result.to(dbias.dtype.element_ty), mask=wanted & (term == 1))
    if HAS_D:
        tl.store(dD + head * dD_h + (term - 2) * dD_p, result.to(dD.dtype.element_ty), mask=wanted & (term > 1))
