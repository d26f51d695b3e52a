"""Adds up what the programs of the backward scan leave: sums over parts of the sequences, and over blocks of channels.

Every sum is taken in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def total_parts(
    dA_parts, dD_parts, dbias_parts, dA, dD, dbias, count, channels, states, dA_d, dA_n,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of A (count, D, N), D and the bias (count, D) over their parts.

    The first programs take A's columns, then come those of D and of the bias.
    """
    program = tl.program_id(0)
    size = channels * states
    of_A = tl.cdiv(size, COLUMNS)
    of_D = tl.cdiv(channels, COLUMNS)
    if program < of_A:
        at = program * COLUMNS + tl.arange(0, COLUMNS)
        total = column_sums(dA_parts, at, count, size, ROWS, COLUMNS)
        tl.store(dA + at // states * dA_d + at % states * dA_n, total.to(dA.dtype.element_ty), mask=at < size)
    elif program < of_A + of_D:
        at = (program - of_A) * COLUMNS + tl.arange(0, COLUMNS)
        if HAS_D:
            total = column_sums(dD_parts, at, count, channels, ROWS, COLUMNS)
            tl.store(dD + at, total.to(dD.dtype.element_ty), mask=at < channels)
    else:
        at = (program - of_A - of_D) * COLUMNS + tl.arange(0, COLUMNS)
        if HAS_BIAS:
            total = column_sums(dbias_parts, at, count, channels, ROWS, COLUMNS)
            tl.store(dbias + at, total.to(dbias.dtype.element_ty), mask=at < channels)


@triton.jit
def column_sums(x, at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums of the columns ``at`` of a matrix (rows, columns)."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (at < columns)[None, :]
        total += tl.load(x + row.to(tl.int64)[:, None] * columns + at[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def total_blocks(
    sums, out, blocks, groups, length, states, out_b, out_g, out_n, out_l,
    N_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add up the gradient of B or C, left as (B, groups * blocks, L, N), over the blocks of a group."""
    tiles = tl.cdiv(length, ROWS)
    tile = tl.program_id(0) % tiles
    group = (tl.program_id(0) // tiles % groups).to(tl.int64)
    batch = (tl.program_id(0) // tiles // groups).to(tl.int64)
    t = tile * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, N_PAD)
    inside = (t < length)[:, None] & (n < states)[None, :]
    size = tl.full([], 1, tl.int64) * length * states
    at = (batch * groups + group) * blocks * size + t.to(tl.int64)[:, None] * states + n[None, :]
    total = tl.zeros([ROWS, N_PAD], tl.float32)
    for _ in range(blocks):
        total += tl.load(sums + at, mask=inside, other=0.0)
        at += size
    at = batch * out_b + group * out_g + t.to(tl.int64)[:, None] * out_l + n.to(tl.int64)[None, :] * out_n
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
