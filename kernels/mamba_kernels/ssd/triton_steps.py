"""What the GPU kernels of SSD share: step sizes and their running sums, tiles of tensors, decays.

``steps`` holds what follows from the step sizes, in reading order and a row a head, each a field (B, H, padded length):
SIZE, the step sizes; SUMS, the running sum of log2 of the decays within a chunk; RESETS, how many resets the chunk had
so far; LEFT, what float32 left of the running sum; START and END, how much is left of the state that enters the chunk,
and of the position at the chunk's end; SLOPE, how the step sizes grow with the numbers they were made of. A step whose
dt * A is below -80 is a reset: it adds nothing to the sum, and nothing reaches across it.

Dimensions: Q positions of a chunk, H heads, N state, P head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import exp2, sigmoid, softplus

REAL = tl.constexpr(1)
RESET = tl.constexpr(2)
LARGEST_DECAY = tl.constexpr(-80.0)
LOG2E = tl.constexpr(1.4426950408889634)
SIZE, SUMS, RESETS, LEFT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
START, END, SLOPE = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)


@triton.jit
def prepare_steps(
    dt, A, bias, marks, order, steps,
    length, heads, reading_heads, padded, field, dt_b, dt_k, dt_l, dt_h, A_h, bias_h, low, high,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MARKS: tl.constexpr, REVERSE: tl.constexpr,
    ROUTED: tl.constexpr, EXACT: tl.constexpr, SLOPES: tl.constexpr, CHUNK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Fill ``steps`` for a chunk and some heads."""
    chunks = padded // CHUNK
    chunk = tl.program_id(0) % chunks
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    on_h = h < heads
    on = (t < length)[:, None] & on_h[None, :]
    reset = tl.zeros([CHUNK, HEADS], tl.int32)
    if ROUTED:
        reading = (h // reading_heads).to(tl.int64)
        at_marks = reading[None, :] * length + t[:, None]
        row = tl.load(order + at_marks, mask=on, other=0).to(tl.int64)
        column = reading * dt_k + (h % reading_heads).to(tl.int64) * dt_h
    else:
        at_marks = batch * length + t[:, None] + tl.zeros([1, HEADS], tl.int32)
        row = (length - 1 - t if REVERSE else t).to(tl.int64)[:, None]
        column = h.to(tl.int64) * dt_h
    if HAS_MARKS:
        mark = tl.load(marks + at_marks, mask=on, other=0).to(tl.int32)
        on = on & ((mark & REAL) != 0)
        reset = mark & RESET
    size = tl.load(dt + batch * dt_b + row * dt_l + column[None, :], mask=on, other=0.0).to(tl.float32)
    rate = tl.load(A + h * A_h, mask=on_h, other=0.0).to(tl.float32)
    if HAS_BIAS:
        size += tl.load(bias + h * bias_h, mask=on_h, other=0.0).to(tl.float32)[None, :]
    slope = tl.full([CHUNK, HEADS], 1.0, tl.float32)
    if SOFTPLUS:
        slope = tl.where(size > 20.0, 1.0, sigmoid(size))
        size = softplus(size)
    slope = tl.where(on & (size >= low) & (size <= high), slope, 0.0)
    size = tl.where(on, tl.minimum(tl.maximum(size, low), high), 0.0)
    log = size.to(tl.float64) * rate.to(tl.float64)[None, :]
    resets = (log < LARGEST_DECAY) | (reset != 0)
    total = tl.cumsum(tl.where(resets, 0.0, log * LOG2E), 0)
    count = tl.cumsum(resets.to(tl.int32), 0)
    is_last = (tl.arange(0, CHUNK) == CHUNK - 1)[:, None]
    rest = tl.sum(tl.where(is_last, total, 0.0), 0)[None, :] - total
    to_come = tl.sum(tl.where(is_last, count, 0), 0)[None, :] - count
    sums = total.to(tl.float32)

    at = steps + (batch * heads + h.to(tl.int64)[None, :]) * padded + t[:, None]
    on = (t >= 0)[:, None] & on_h[None, :]
    tl.store(at + SIZE * field, size, mask=on)
    tl.store(at + SUMS * field, sums, mask=on)
    tl.store(at + RESETS * field, count.to(tl.float32), mask=on)
    if EXACT:
        tl.store(at + LEFT * field, (total - sums.to(tl.float64)).to(tl.float32), mask=on)
    tl.store(at + START * field, tl.where(count == 0, exp2(sums), 0.0), mask=on)
    tl.store(at + END * field, tl.where(to_come == 0, exp2(rest.to(tl.float32)), 0.0), mask=on)
    if SLOPES:
        tl.store(at + SLOPE * field, slope, mask=on)


@triton.jit
def load_decays(at, field, to, source, EXACT: tl.constexpr):
    """Return the decays from positions ``source`` of a chunk to positions ``to``, 0 where these come before."""
    log = tl.load(at + SUMS * field + to) - tl.load(at + SUMS * field + source)
    if EXACT:
        log += tl.load(at + LEFT * field + to) - tl.load(at + LEFT * field + source)
    same = tl.load(at + RESETS * field + to) == tl.load(at + RESETS * field + source)
    return exp2(tl.where((to >= source) & same, log, float("-inf")))


@triton.jit
def load_tile(at, row, row_stride, column, column_stride, on_row, on_column, ALL_COLUMNS: tl.constexpr):
    """Return a tile with zeros where rows or columns are off; with ``ALL_COLUMNS`` none of those is."""
    at += row[:, None] * row_stride + column[None, :] * column_stride
    on = on_row[:, None]
    if not ALL_COLUMNS:
        on = on & on_column[None, :]
    return tl.load(at, mask=on, other=0.0)


@triton.jit
def store_tile(at, x, row, row_stride, column, column_stride, on_row, on_column, ALL_COLUMNS: tl.constexpr):
    """Write a tile where rows and columns are on."""
    at += row[:, None] * row_stride + column[None, :] * column_stride
    on = on_row[:, None]
    if not ALL_COLUMNS:
        on = on & on_column[None, :]
    tl.store(at, x.to(at.dtype.element_ty), mask=on)


@triton.jit
def load_state(at, n, p, states, width):
    """Return a tile (N, P) of a state that lies as (P, N)."""
    on = (n < states)[:, None] & (p < width)[None, :]
    return tl.load(at + p[None, :] * states + n[:, None], mask=on, other=0.0)


@triton.jit
def store_state(at, x, n, p, states, width):
    """Write a tile (N, P) of a state that lies as (P, N)."""
    on = (n < states)[:, None] & (p < width)[None, :]
    tl.store(at + p[None, :] * states + n[:, None], x, mask=on)


@triton.jit
def at_head(x, batch, head, reading_heads, x_b, x_k, x_h, ROUTED: tl.constexpr):
    """Return where a head of a sequence starts; on a route the heads of all readings are counted through."""
    x += batch * x_b
    if ROUTED:
        return x + head // reading_heads * x_k + head % reading_heads * x_h
    else:
        return x + head * x_h


@triton.jit
def at_sequence(marks, batch, head, reading_heads, length, ROUTED: tl.constexpr):
    """Return where the marks of a sequence start, or on a route the marks or the order of a reading."""
    if ROUTED:
        return marks + head // reading_heads * length
    else:
        return marks + batch * length


@triton.jit
def rows_of_chunk(
    marks, order, chunk, length,
    CHUNK: tl.constexpr, REVERSE: tl.constexpr, ROUTED: tl.constexpr, HAS_MARKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return where in memory a chunk starts, its positions' rows from there, which exist, and which are no padding.

    ``marks`` and ``order`` are what `at_sequence` returns.
    """
    first = tl.full([], CHUNK, tl.int64) * chunk
    t = first + tl.arange(0, CHUNK)
    exists = t < length
    real = exists
    if HAS_MARKS:
        real = (tl.load(marks + t, mask=exists, other=0).to(tl.int32) & REAL) != 0
    if ROUTED:
        row = tl.load(order + t, mask=exists, other=0)
        if WIDE:
            row = row.to(tl.int64)
        return tl.zeros([], tl.int64), row, exists, real
    else:
        if REVERSE:
            first = length - 1 - first
        return first, offsets(CHUNK, REVERSE, WIDE), exists, real


@triton.jit
def offsets(SIZE: tl.constexpr, BACKWARDS: tl.constexpr, WIDE: tl.constexpr):
    """Return 0, 1, ... or 0, -1, ..., in 64 bits where their products with strides need that."""
    i = tl.arange(0, SIZE)
    if WIDE:
        i = i.to(tl.int64)
    return -i if BACKWARDS else i


@triton.jit
def silu(x):
    """Return x sigmoid(x)."""
    return x * sigmoid(x)
