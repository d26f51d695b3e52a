"""The depthwise convolution's GPU kernels: walkers go along the grid's first axis, row by row.

A row is what lies across that axis: a line of the image, a plane of the volume. Of each row the cells around a walker's
own are read, 3 or 9 of them (``ACROSS``), mostly from the cache. Dimensions of tiles: walkers, channels. Walkers stand
on the cells of a row, those of all sequences numbered through. Taps are numbered like the filter's memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import sigmoid, silu_slope


@triton.jit
def _filter(weight, d, on_d, TAPS: tl.constexpr, FLIP: tl.constexpr):
    """Return the taps, one row each; with ``FLIP`` those of the filter turned around on every axis."""
    taps = ()
    for tap in tl.static_range(TAPS):
        place = TAPS - 1 - tap if FLIP else tap
        taps = taps + (tl.load(weight + d * TAPS + place, mask=on_d, other=0.0).to(tl.float32)[None, :],)
    return taps


@triton.jit
def _inside(on, m, n, middle, last, ACROSS: tl.constexpr):
    """Return for each cell around the walkers' own whether it is on the grid."""
    masks = ()
    for tap in tl.static_range(ACROSS):
        n_by = tap % 3 - 1
        inside = (n + n_by >= 0) & (n + n_by < last)
        if ACROSS == 9:
            m_by = tap // 3 - 1
            inside = inside & (m + m_by >= 0) & (m + m_by < middle)
        masks = masks + (on & inside[:, None],)
    return masks


@triton.jit
def _row(x, masks, is_row, x_m, x_n, ACROSS: tl.constexpr):
    """Return the cells around the walkers' own, which are at ``x``, as they are; zeros beyond the grid."""
    tiles = ()
    for tap in tl.static_range(ACROSS):
        at = (tap % 3 - 1) * x_n
        if ACROSS == 9:
            at += (tap // 3 - 1) * x_m
        tiles = tiles + (tl.load(x + at, mask=masks[tap] & is_row, other=0.0),)
    return tiles


@triton.jit
def _place(walker, middle, last):
    """Return the sequence of a walker and where it stands in a row."""
    cells = middle * last
    cell = walker % cells
    return walker // cells, cell // last, cell % last


@triton.jit
def depthwise_forward(
    x, weight, bias, y, channels, walkers, rows, middle, last, part_length,
    x_b, x_h, x_m, x_n, x_d, y_b, y_h, y_m, y_n, y_d,
    ACROSS: tl.constexpr, WALKERS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Write ``y`` for a part of the rows, ``WALKERS`` cells of each and ``COLUMNS`` channels.

    A row read adds to the outputs before, at and after it, which are kept in registers.
    """
    blocks = tl.cdiv(channels, COLUMNS)
    d = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    walker = (tl.program_id(0) // blocks).to(tl.int64) * WALKERS + tl.arange(0, WALKERS)
    on = (walker < walkers)[:, None] & (d < channels)[None, :]
    batch, m, n = _place(walker, middle, last)
    masks = _inside(on, m, n, middle, last, ACROSS)
    d64 = d.to(tl.int64)
    taps = _filter(weight, d64, d < channels, 3 * ACROSS, FLIP)
    shift = tl.zeros([WALKERS, COLUMNS], tl.float32)
    if HAS_BIAS:
        shift += tl.load(bias + d, mask=d < channels, other=0.0).to(tl.float32)[None, :]
    first = tl.program_id(1) * part_length
    own = tl.minimum(part_length, rows - first)
    one = tl.full([], 1, tl.int64)
    x_h, x_m, x_n, y_h = one * x_h, one * x_m, one * x_n, one * y_h
    x += (batch * x_b + m * x_m + n * x_n + (first - 1) * x_h)[:, None] + d64[None, :] * x_d
    y += (batch * y_b + m * y_m + n * y_n + (first - 2) * y_h)[:, None] + d64[None, :] * y_d
    before = shift
    here = shift
    for step in range(-1, own + 1, STEPS):
        # All loads of these steps come before their arithmetic, so that they are in flight together.
        cells = ()
        for i in tl.static_range(STEPS):
            row = first + step + i
            cells = cells + _row(x + i * x_h, masks, (row >= 0) & (row < rows), x_m, x_n, ACROSS)
        for i in tl.static_range(STEPS):
            after = shift
            for tap in tl.static_range(ACROSS):
                value = cells[i * ACROSS + tap].to(tl.float32)
                before += taps[2 * ACROSS + tap] * value
                here += taps[ACROSS + tap] * value
                after += taps[tap] * value
            v = before
            if SILU:
                v = v * sigmoid(v)
            complete = (step + i >= 1) & (step + i <= own)
            tl.store(y + i * y_h, v.to(y.dtype.element_ty), mask=on & complete)
            before = here
            here = after
        x += STEPS * x_h
        y += STEPS * y_h


@triton.jit
def depthwise_gradients(
    x, weight, bias, dy, grad, sums, channels, walkers, rows, middle, last, part_length, parts,
    x_b, x_h, x_m, x_n, x_d, dy_b, dy_h, dy_m, dy_n, dy_d, grad_b, grad_h, grad_m, grad_n, grad_d,
    ACROSS: tl.constexpr, WALKERS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write the gradient before the activation, and this program's sums of dweight and dbias.

    ``sums`` is (programs, taps + 1, channels), the last being dbias, or without a bias (programs, taps, channels).
    Without an activation the gradient is that of the output, and is not written.
    """
    taps_all: tl.constexpr = 3 * ACROSS
    blocks = tl.cdiv(channels, COLUMNS)
    d = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    on_d = d < channels
    d64 = d.to(tl.int64)
    x += d64[None, :] * x_d
    dy += d64[None, :] * dy_d
    grad += d64[None, :] * grad_d
    if SILU:
        taps = _filter(weight, d64, on_d, taps_all, False)
        shift = tl.zeros([1, COLUMNS], tl.float32)
        if HAS_BIAS:
            shift += tl.load(bias + d, mask=on_d, other=0.0).to(tl.float32)[None, :]
    dtaps = ()
    for _ in tl.static_range(taps_all + 1):
        dtaps = dtaps + (tl.zeros([WALKERS, COLUMNS], tl.float32),)
    program = tl.program_id(0) // blocks
    one = tl.full([], 1, tl.int64)
    x_h, x_m, x_n, dy_h, grad_h = one * x_h, one * x_m, one * x_n, one * dy_h, one * grad_h
    for task in range(program, tl.cdiv(walkers, WALKERS) * parts, tl.num_programs(0) // blocks):
        walker = (task // parts).to(tl.int64) * WALKERS + tl.arange(0, WALKERS)
        on = (walker < walkers)[:, None] & on_d[None, :]
        batch, m, n = _place(walker, middle, last)
        masks = _inside(on, m, n, middle, last, ACROSS)
        first = task % parts * part_length
        own = tl.minimum(part_length, rows - first)
        x_at = x + (batch * x_b + m * x_m + n * x_n + first * x_h)[:, None]
        dy_at = dy + (batch * dy_b + m * dy_m + n * dy_n + first * dy_h)[:, None]
        grad_at = grad + (batch * grad_b + m * grad_m + n * grad_n + first * grad_h)[:, None]
        window = _row(x_at - x_h, masks, first > 0, x_m, x_n, ACROSS) + _row(x_at, masks, True, x_m, x_n, ACROSS)
        for step in range(0, own, STEPS):
            cells = ()
            dys = ()
            for i in tl.static_range(STEPS):
                cells = cells + _row(
                    x_at + (i + 1) * x_h, masks, first + step + i + 1 < rows, x_m, x_n, ACROSS
                )  # fmt: skip
                dys = dys + (tl.load(dy_at + i * dy_h, mask=on & (step + i < own), other=0.0),)
            for i in tl.static_range(STEPS):
                window = window + cells[i * ACROSS : (i + 1) * ACROSS]
                g = dys[i].to(tl.float32)
                if SILU:
                    v = shift
                    for tap in tl.static_range(taps_all):
                        v += taps[tap] * window[tap].to(tl.float32)
                    g = g * silu_slope(v)
                    tl.store(grad_at + i * grad_h, g.to(grad.dtype.element_ty), mask=on & (step + i < own))
                sums_now = ()
                for tap in tl.static_range(taps_all):
                    sums_now = sums_now + (dtaps[tap] + g * window[tap].to(tl.float32),)
                dtaps = sums_now + (dtaps[taps_all] + g,)
                window = window[ACROSS:]
            x_at += STEPS * x_h
            dy_at += STEPS * dy_h
            grad_at += STEPS * grad_h
    terms: tl.constexpr = taps_all + 1 if HAS_BIAS else taps_all
    sums += program.to(tl.int64) * terms * channels + d64
    for term in tl.static_range(terms):
        tl.store(sums + term * channels, tl.sum(dtaps[term], axis=0), mask=on_d)
