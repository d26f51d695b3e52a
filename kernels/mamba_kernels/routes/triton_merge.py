"""Kernels that merge what the readings of a route leave on the grid, gated by silu(z), and take a gradient apart again.

A tile is (cells, channels) of one grid.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import sigmoid, silu_slope


@triton.jit
def merge(
    ys, z, out, merged, readings, cells, channels, scale, z_b, z_l, z_d,
    HAS_Z: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the scaled sum of ``ys`` (B, K, L, D) to ``merged`` (B, L, D), and gated to ``out``."""
    batch, row, column, inside = tile_at(cells, channels, ROWS, COLUMNS)
    at = row[:, None] * channels + column[None, :]
    size = tl.full([], 1, tl.int64) * cells * channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(readings):
        total += tl.load(ys + (batch * readings + k) * size + at, mask=inside, other=0.0).to(tl.float32)
    total = total * scale
    if KEEP:
        tl.store(merged + batch * size + at, total.to(merged.dtype.element_ty), mask=inside)
    if HAS_Z:
        gate = tl.load(z + batch * z_b + row[:, None] * z_l + column[None, :] * z_d, mask=inside, other=0.0)
        gate = gate.to(tl.float32)
        total = total * gate * sigmoid(gate)
    tl.store(out + batch * size + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def unmerge(
    dout, z, merged, dparts, dz, cells, channels, scale, dout_b, dout_l, dout_d, z_b, z_l, z_d, dz_b, dz_l, dz_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one part, which all parts share, (B, L, D), and of the gate."""
    batch, row, column, inside = tile_at(cells, channels, ROWS, COLUMNS)
    at = batch * cells * channels + row[:, None] * channels + column[None, :]
    grad = tl.load(dout + batch * dout_b + row[:, None] * dout_l + column[None, :] * dout_d, mask=inside, other=0.0)
    gate = tl.load(z + batch * z_b + row[:, None] * z_l + column[None, :] * z_d, mask=inside, other=0.0)
    grad, gate = grad.to(tl.float32), gate.to(tl.float32)
    before = tl.load(merged + at, mask=inside, other=0.0).to(tl.float32)
    dgate = grad * before * silu_slope(gate)
    place = batch * dz_b + row[:, None] * dz_l + column[None, :] * dz_d
    tl.store(dz + place, dgate.to(dz.dtype.element_ty), mask=inside)
    dpart = grad * gate * sigmoid(gate) * scale
    tl.store(dparts + at, dpart.to(dparts.dtype.element_ty), mask=inside)


@triton.jit
def tile_at(cells, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return this program's grid, rows and columns, and which of its tile is inside."""
    down, across = tl.cdiv(cells, ROWS), tl.cdiv(channels, COLUMNS)
    tile = tl.program_id(0) % (down * across)
    batch = (tl.program_id(0) // (down * across)).to(tl.int64)
    row = (tile // across * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tile % across * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    return batch, row, column, (row < cells)[:, None] & (column < channels)[None, :]
