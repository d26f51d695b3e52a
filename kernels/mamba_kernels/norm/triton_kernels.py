"""The norms' GPU kernels: a program takes some rows of one group of channels at a time, each row whole.

A row is read as ``CHUNKS`` chunks, tiles of (ROWS, CHUNK) each: chunks are added up number by number before anything
crosses lanes, and of a row's 384 channels three chunks of 128 leave no lane idle. ``GATE`` is 0 without a gate, 1 where
silu(z) multiplies before the norm and 2 where it does after.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import sigmoid

GATE_FIRST = tl.constexpr(1)
GATE_LAST = tl.constexpr(2)


@triton.jit
def _read(x, row, on_row, stride, first, width, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Return the chunks of ``width`` channels from ``first`` on, as they are."""
    chunks = ()
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + tl.arange(0, CHUNK)
        inside = on_row[:, None] & (column < width)[None, :]
        chunks = chunks + (tl.load(x + row[:, None] * stride + (first + column)[None, :], mask=inside, other=0.0),)
    return chunks


@triton.jit
def _write(x, chunks, row, on_row, stride, first, width, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Write the chunks of ``width`` channels from ``first`` on."""
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + tl.arange(0, CHUNK)
        inside = on_row[:, None] & (column < width)[None, :]
        tl.store(x + row[:, None] * stride + (first + column)[None, :], chunks[c].to(x.dtype.element_ty), mask=inside)


@triton.jit
def _parameter(weight, first, width, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Return the chunks of a parameter, one row each."""
    chunks = ()
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + tl.arange(0, CHUNK)
        chunk = tl.load(weight + first + column, mask=column < width, other=0.0)
        chunks = chunks + (chunk.to(tl.float32)[None, :],)
    return chunks


@triton.jit
def _widened(chunks, CHUNKS: tl.constexpr):
    wide = ()
    for c in tl.static_range(CHUNKS):
        wide = wide + (chunks[c].to(tl.float32),)
    return wide


@triton.jit
def _product(a, b, CHUNKS: tl.constexpr):
    product = ()
    for c in tl.static_range(CHUNKS):
        product = product + (a[c] * b[c],)
    return product


@triton.jit
def _sum(a, CHUNKS: tl.constexpr):
    """Return the sum of each row."""
    total = a[0]
    for c in tl.static_range(1, CHUNKS):
        total += a[c]
    return tl.sum(total, axis=1)


@triton.jit
def _sum_of_products(a, b, CHUNKS: tl.constexpr):
    """Return the sum of each row of a times b."""
    total = a[0] * b[0]
    for c in tl.static_range(1, CHUNKS):
        total += a[c] * b[c]
    return tl.sum(total, axis=1)


@triton.jit
def _centre(s, on_row, width, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Return ``s`` less each row's mean; zeros stay where there is no channel."""
    mean = (_sum(s, CHUNKS) / width)[:, None]
    centred = ()
    for c in tl.static_range(CHUNKS):
        inside = on_row[:, None] & (c * CHUNK + tl.arange(0, CHUNK) < width)[None, :]
        centred = centred + (tl.where(inside, s[c] - mean, 0.0),)
    return centred


@triton.jit
def _scale(s, on_row, width, eps, CHUNKS: tl.constexpr):
    """Return what the rows of ``s`` are multiplied by; 1 past the last row, whose mean square and eps may be 0."""
    return 1.0 / tl.sqrt(tl.where(on_row, _sum_of_products(s, s, CHUNKS) / width + eps, 1.0))


@triton.jit
def _gates(z, CHUNKS: tl.constexpr):
    """Return silu(z) and its derivative."""
    silu = ()
    slope = ()
    for c in tl.static_range(CHUNKS):
        gate = z[c].to(tl.float32)
        s = sigmoid(gate)
        silu = silu + (gate * s,)
        slope = slope + (s * (1.0 + gate * (1.0 - s)),)
    return silu, slope


@triton.jit
def norm_forward(
    x, residual, z, weight, bias, out, added, rows, width, eps, x_row, residual_row, z_row, out_row, added_row,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, CENTRED: tl.constexpr, GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write the norm of x + residual for ``ROWS`` rows of one group, and the sum."""
    first = tl.program_id(1) * width
    w = _parameter(weight, first, width, CHUNKS, CHUNK)
    if HAS_BIAS:
        shift = _parameter(bias, first, width, CHUNKS, CHUNK)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    on_row = row < rows
    s = _read(x, row, on_row, x_row, first, width, CHUNKS, CHUNK)
    if HAS_RESIDUAL:
        carried = _read(residual, row, on_row, residual_row, first, width, CHUNKS, CHUNK)
    if GATE != 0:
        silu, _ = _gates(_read(z, row, on_row, z_row, first, width, CHUNKS, CHUNK), CHUNKS)
    s = _widened(s, CHUNKS)
    if HAS_RESIDUAL:
        total = ()
        for c in tl.static_range(CHUNKS):
            total = total + (s[c] + carried[c].to(tl.float32),)
        s = total
        _write(added, s, row, on_row, added_row, first, width, CHUNKS, CHUNK)
    if GATE == GATE_FIRST:
        s = _product(s, silu, CHUNKS)
    if CENTRED:
        s = _centre(s, on_row, width, CHUNKS, CHUNK)
    scale = _scale(s, on_row, width, eps, CHUNKS)[:, None]
    y = ()
    for c in tl.static_range(CHUNKS):
        value = s[c] * scale * w[c]
        if HAS_BIAS:
            value += shift[c]
        y = y + (value,)
    if GATE == GATE_LAST:
        y = _product(y, silu, CHUNKS)
    _write(out, y, row, on_row, out_row, first, width, CHUNKS, CHUNK)


@triton.jit
def norm_backward(
    x, z, weight, bias, dout, dadded, dx, dresidual, dz, sums, rows, width, eps,
    x_row, z_row, dout_row, dadded_row, dx_row, dresidual_row, dz_row,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, CENTRED: tl.constexpr, GATE: tl.constexpr,
    HAS_DADDED: tl.constexpr, HAS_DRESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write dx, also as dresidual, and dz for every so manieth tile of rows, and this program's sums.

    ``sums`` is (programs, 2, channels), dweight and dbias, or without a bias (programs, 1, channels).
    """
    first = tl.program_id(1) * width
    w = _parameter(weight, first, width, CHUNKS, CHUNK)
    dw = ()
    for _ in tl.static_range(CHUNKS):
        dw = dw + (tl.zeros([ROWS, CHUNK], tl.float32),)
    if HAS_BIAS:
        shift = _parameter(bias, first, width, CHUNKS, CHUNK)
        db = dw
    for begin in range(tl.program_id(0).to(tl.int64) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = begin + tl.arange(0, ROWS)
        on_row = row < rows
        # All loads come before the arithmetic, so that they are in flight together.
        s = _read(x, row, on_row, x_row, first, width, CHUNKS, CHUNK)
        dy = _read(dout, row, on_row, dout_row, first, width, CHUNKS, CHUNK)
        if GATE != 0:
            gate = _read(z, row, on_row, z_row, first, width, CHUNKS, CHUNK)
        if HAS_DADDED:
            direct = _read(dadded, row, on_row, dadded_row, first, width, CHUNKS, CHUNK)
        s = _widened(s, CHUNKS)
        dy = _widened(dy, CHUNKS)
        raw = s
        if GATE != 0:
            silu, slope = _gates(gate, CHUNKS)
            if GATE == GATE_FIRST:
                s = _product(s, silu, CHUNKS)
        if CENTRED:
            s = _centre(s, on_row, width, CHUNKS, CHUNK)
        scale = _scale(s, on_row, width, eps, CHUNKS)[:, None]
        if GATE == GATE_LAST:
            dgate = ()
            for c in tl.static_range(CHUNKS):
                y = s[c] * scale * w[c]
                if HAS_BIAS:
                    y += shift[c]
                dgate = dgate + (dy[c] * y * slope[c],)
            _write(dz, dgate, row, on_row, dz_row, first, width, CHUNKS, CHUNK)
            dy = _product(dy, silu, CHUNKS)
        dw_now = ()
        dunit = ()
        for c in tl.static_range(CHUNKS):
            dw_now = dw_now + (dw[c] + dy[c] * (s[c] * scale),)
            dunit = dunit + (dy[c] * w[c],)
        dw = dw_now
        if HAS_BIAS:
            db_now = ()
            for c in tl.static_range(CHUNKS):
                db_now = db_now + (db[c] + dy[c],)
            db = db_now
        along = (_sum_of_products(dunit, s, CHUNKS) / width)[:, None] * scale * scale
        if CENTRED:
            mean = (_sum(dunit, CHUNKS) / width)[:, None]
        ds = ()
        for c in tl.static_range(CHUNKS):
            value = dunit[c] - s[c] * along
            if CENTRED:
                value -= mean
            ds = ds + (value * scale,)
        if GATE == GATE_FIRST:
            _write(
                dz, _product(_product(ds, raw, CHUNKS), slope, CHUNKS), row, on_row, dz_row, first, width, CHUNKS, CHUNK
            )  # fmt: skip
            ds = _product(ds, silu, CHUNKS)
        if HAS_DADDED:
            total = ()
            for c in tl.static_range(CHUNKS):
                total = total + (ds[c] + direct[c].to(tl.float32),)
            ds = total
        _write(dx, ds, row, on_row, dx_row, first, width, CHUNKS, CHUNK)
        if HAS_DRESIDUAL:
            _write(dresidual, ds, row, on_row, dresidual_row, first, width, CHUNKS, CHUNK)
    channels = tl.num_programs(1).to(tl.int64) * width
    sums += tl.program_id(0) * channels * (2 if HAS_BIAS else 1) + first
    for c in tl.static_range(CHUNKS):
        column = c * CHUNK + tl.arange(0, CHUNK)
        tl.store(sums + column, tl.sum(dw[c], axis=0), mask=column < width)
        if HAS_BIAS:
            tl.store(sums + channels + column, tl.sum(db[c], axis=0), mask=column < width)
