"""The norms' GPU kernels: a program takes some rows of one group of channels, each row whole.

``GATE`` is 0 without a gate, 1 where silu(z) multiplies before the norm and 2 where it does after.
"""

from __future__ import annotations

import triton
import triton.language as tl

GATE_FIRST = tl.constexpr(1)
GATE_LAST = tl.constexpr(2)


@triton.jit
def _scale(s, is_row, width, eps):
    """Return what the rows of ``s`` are multiplied by; 1 past the last row, whose mean square and eps may be 0."""
    return 1.0 / tl.sqrt(tl.where(is_row, tl.sum(s * s, axis=1) / width + eps, 1.0))


@triton.jit
def norm_forward(
    x, residual, z, weight, bias, out, added, rows, width, eps,
    x_row, residual_row, z_row, out_row, added_row,
    ROWS: tl.constexpr, WIDTH_PAD: tl.constexpr, CENTRED: tl.constexpr, GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write the norm of x + residual for ``ROWS`` rows of one group, and the sum."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH_PAD)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    channel = tl.program_id(1) * width + column
    s = tl.load(x + row[:, None] * x_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(residual + row[:, None] * residual_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(added + row[:, None] * added_row + channel[None, :], s.to(added.dtype.element_ty), mask=inside)
    if GATE != 0:
        gate = tl.load(z + row[:, None] * z_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        gate = gate / (1.0 + tl.exp(-gate))
        if GATE == GATE_FIRST:
            s = s * gate
    if CENTRED:
        s = tl.where(inside, s - (tl.sum(s, axis=1) / width)[:, None], 0.0)
    scale = _scale(s, row < rows, width, eps)
    w = tl.load(weight + channel, mask=column < width, other=0.0).to(tl.float32)
    y = s * scale[:, None] * w[None, :]
    if HAS_BIAS:
        y += tl.load(bias + channel, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if GATE == GATE_LAST:
        y = y * gate
    tl.store(out + row[:, None] * out_row + channel[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    x, z, weight, bias, dout, dadded, dx, dz, dweight, dbias, rows, width, eps,
    x_row, z_row, dout_row, dadded_row, dx_row, dz_row,
    ROWS: tl.constexpr, WIDTH_PAD: tl.constexpr, CENTRED: tl.constexpr, GATE: tl.constexpr,
    HAS_DADDED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write dx and dz, walking every so manieth tile of rows, and this program's part of dweight and dbias."""
    column = tl.arange(0, WIDTH_PAD)
    channel = tl.program_id(1) * width + column
    w = tl.load(weight + channel, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.zeros([WIDTH_PAD], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + channel, mask=column < width, other=0.0).to(tl.float32)
    dweight_sum = tl.zeros([WIDTH_PAD], tl.float32)
    dbias_sum = tl.zeros([WIDTH_PAD], tl.float32)
    for first in range(tl.program_id(0).to(tl.int64) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        s = tl.load(x + row[:, None] * x_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dout + row[:, None] * dout_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        raw = s
        if GATE != 0:
            gate = tl.load(z + row[:, None] * z_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-gate))
            silu = gate * sigmoid
            dsilu = sigmoid * (1.0 + gate * (1.0 - sigmoid))
            if GATE == GATE_FIRST:
                s = s * silu
        if CENTRED:
            s = tl.where(inside, s - (tl.sum(s, axis=1) / width)[:, None], 0.0)
        scale = _scale(s, row < rows, width, eps)
        unit = s * scale[:, None]
        if GATE == GATE_LAST:
            dgate = dy * (unit * w[None, :] + shift[None, :]) * dsilu
            tl.store(dz + row[:, None] * dz_row + channel[None, :], dgate.to(dz.dtype.element_ty), mask=inside)
            dy = dy * silu
        dweight_sum += tl.sum(dy * unit, axis=0)
        dbias_sum += tl.sum(dy, axis=0)
        dunit = dy * w[None, :]
        ds = dunit - unit * (tl.sum(dunit * unit, axis=1) / width)[:, None]
        if CENTRED:
            ds = ds - (tl.sum(dunit, axis=1) / width)[:, None]
        ds = ds * scale[:, None]
        if GATE == GATE_FIRST:
            tl.store(
                dz + row[:, None] * dz_row + channel[None, :], (ds * raw * dsilu).to(dz.dtype.element_ty), mask=inside
            )  # fmt: skip
            ds = ds * silu
        if HAS_DADDED:
            ds += tl.load(dadded + row[:, None] * dadded_row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row[:, None] * dx_row + channel[None, :], ds.to(dx.dtype.element_ty), mask=inside)
    part = (tl.program_id(0) * tl.num_programs(1)).to(tl.int64) * width + channel
    tl.store(dweight + part, dweight_sum, mask=column < width)
    if HAS_BIAS:
        tl.store(dbias + part, dbias_sum, mask=column < width)
