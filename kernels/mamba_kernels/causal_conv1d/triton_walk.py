"""The causal convolution's GPU kernels for short filters over tensors whose channels lie side by side.

Walkers go along one part of one sequence each, for a block of channels, with the last inputs in registers: an element
is read once, and nothing is computed twice but where parts meet. Dimensions of tiles: walkers, channels. Positions are
counted in reading order (ranks). ``BOTH`` convolves from both ends in one pass, with a filter for each: the second
reading at rank t needs the inputs t to t + W - 1, so it follows the first W - 1 ranks behind.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import sigmoid, silu_slope


@triton.jit
def _taps(weight, bias, d, on_d, weight_d, weight_w, bias_d, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Return a filter's taps and its bias, one row each."""
    taps = ()
    for w in tl.static_range(WIDTH):
        tap = tl.load(weight + d.to(tl.int64) * weight_d + w * weight_w, mask=on_d, other=0.0)
        taps = taps + (tap.to(tl.float32)[None, :],)
    shift = tl.zeros([d.shape[0]], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + d.to(tl.int64) * bias_d, mask=on_d, other=0.0).to(tl.float32)
    return taps, shift[None, :]


@triton.jit
def _along(taps, window, total, WIDTH: tl.constexpr):
    """Return ``total`` plus the taps times the window, tap for tap."""
    for w in tl.static_range(WIDTH):
        total += taps[w] * window[w]
    return total


@triton.jit
def _against(taps, window, total, WIDTH: tl.constexpr):
    """Return ``total`` plus the taps times the window turned around."""
    for w in tl.static_range(WIDTH):
        total += taps[WIDTH - 1 - w] * window[w]
    return total


@triton.jit
def _history(x, initial, rank, on, row, initial_l, WIDTH: tl.constexpr, HAS_INITIAL: tl.constexpr):
    """Return the input at ``rank``, which may be before the first: then the initial states hold it."""
    value = tl.load(x + row[:, None], mask=on & (rank >= 0)[:, None], other=0.0).to(tl.float32)
    if HAS_INITIAL:
        before = on & (rank < 0)[:, None]
        value += tl.load(initial + ((rank + WIDTH - 1) * initial_l)[:, None], mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def _task(task, tasks, parts, part_length, length):
    """Return the sequence of each walker, where its part begins and where it ends, both the same past the last task."""
    batch = task // parts
    first = task % parts * part_length
    stop = tl.where(task < tasks, tl.minimum(first + part_length, length), first)
    return batch, first, stop


@triton.jit
def walk_forward(
    x, weight, bias, initial, y, final, channels, length, tasks, parts, part_length,
    x_b, x_d, x_l, weight_k, weight_d, weight_w, bias_k, bias_d, initial_b, initial_d, initial_l, y_b, y_k, y_d, y_l,
    final_b, final_d, final_l,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, SILU: tl.constexpr,
    REVERSE: tl.constexpr, BOTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HAS_FINAL: tl.constexpr,
):  # fmt: skip
    """Write ``y`` for ``ROWS`` parts of sequences and ``COLUMNS`` channels, and the final states of their sequences."""
    lag: tl.constexpr = WIDTH - 1
    blocks = tl.cdiv(channels, COLUMNS)
    d = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    on_d = (d < channels)[None, :]
    task = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    batch, first, stop = _task(task, tasks, parts, part_length, length)
    on = (task < tasks)[:, None] & on_d
    d64 = d.to(tl.int64)
    taps, shift = _taps(weight, bias, d, d < channels, weight_d, weight_w, bias_d, WIDTH, HAS_BIAS)
    if BOTH:
        taps_back, shift_back = _taps(
            weight + weight_k, bias + bias_k, d, d < channels, weight_d, weight_w, bias_d, WIDTH, HAS_BIAS
        )  # fmt: skip
    x += batch[:, None] * x_b + d64[None, :] * x_d
    y += batch[:, None] * y_b + d64[None, :] * y_d
    initial += batch[:, None] * initial_b + d64[None, :] * initial_d
    # What a rank adds to an offset, and the offset of rank 0.
    x_step = tl.full([], -1 if REVERSE else 1, tl.int64) * x_l
    y_step = tl.full([], -1 if REVERSE else 1, tl.int64) * y_l
    x_0 = (tl.full([], 0, tl.int64) + length - 1) * x_l if REVERSE else tl.full([], 0, tl.int64)
    y_0 = (tl.full([], 0, tl.int64) + length - 1) * y_l if REVERSE else tl.full([], 0, tl.int64)
    window = ()
    for i in tl.static_range(lag):
        rank = first - lag + i
        window = window + (_history(x, initial, rank, on, x_0 + rank * x_step, initial_l, WIDTH, HAS_INITIAL),)
    x_at = x + (x_0 + first * x_step)[:, None]
    y_at = y + (y_0 + first * y_step)[:, None]
    # Ranks of the part, and of the sequence from its start on.
    own = (stop - first).to(tl.int32)[:, None]
    ahead = tl.minimum(length - first, part_length + lag).to(tl.int32)[:, None] if BOTH else own
    for s in range(0, part_length + (lag if BOTH else 0), STEPS):
        # All loads of these steps come before their arithmetic, so that they are in flight together.
        news = ()
        for i in tl.static_range(STEPS):
            news = news + (tl.load(x_at + i * x_step, mask=on & (s + i < ahead), other=0.0),)
        for i in tl.static_range(STEPS):
            window = window + (news[i].to(tl.float32),)
            v = _along(taps, window, shift, WIDTH)
            if SILU:
                v = v * sigmoid(v)
            tl.store(y_at + i * y_step, v.to(y.dtype.element_ty), mask=on & (s + i < own))
            if BOTH:
                v = _against(taps_back, window, shift_back, WIDTH)
                if SILU:
                    v = v * sigmoid(v)
                there = on & (s + i - lag < own) & (s + i >= lag)
                tl.store(y_at + ((i - lag) * y_step + y_k), v.to(y.dtype.element_ty), mask=there)
            window = window[1:]
        x_at += STEPS * x_step
        y_at += STEPS * y_step
    if HAS_FINAL:
        last = on & (stop == length)[:, None]
        final += batch[:, None] * final_b + d64[None, :] * final_d
        for i in tl.static_range(lag):
            rank = tl.zeros([ROWS], tl.int64) + length - lag + i
            value = _history(x, initial, rank, last, x_0 + rank * x_step, initial_l, WIDTH, HAS_INITIAL)
            tl.store(final + i * final_l, value.to(final.dtype.element_ty), mask=last)


@triton.jit
def walk_backward(
    dy, dfinal, x, weight, bias, initial, dx, dinitial, sums, channels, length, tasks, parts, part_length,
    dy_b, dy_k, dy_d, dy_l, dfinal_b, dfinal_d, dfinal_l, x_b, x_d, x_l, weight_k, weight_d, weight_w, bias_k, bias_d,
    initial_b, initial_d, initial_l, dx_b, dx_d, dx_l, dinitial_b, dinitial_d, dinitial_l,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, SILU: tl.constexpr,
    REVERSE: tl.constexpr, BOTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    HAS_DFINAL: tl.constexpr,
):  # fmt: skip
    """Write dx for every so manieth ``ROWS`` parts, and this program's sums of dweight and dbias.

    A gradient g before the activation is complete once the input at its rank is read; dx is complete W - 1 ranks later.
    ``sums`` is (programs, readings, W + 1, D), the last of the W + 1 being dbias, or with W without a bias.
    """
    lag: tl.constexpr = WIDTH - 1
    blocks = tl.cdiv(channels, COLUMNS)
    d = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    on_d = (d < channels)[None, :]
    d64 = d.to(tl.int64)
    taps, shift = _taps(weight, bias, d, d < channels, weight_d, weight_w, bias_d, WIDTH, HAS_BIAS)
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    dtaps = ()
    for _ in tl.static_range(WIDTH + 1):
        dtaps = dtaps + (zero,)
    if BOTH:
        taps_back, shift_back = _taps(
            weight + weight_k, bias + bias_k, d, d < channels, weight_d, weight_w, bias_d, WIDTH, HAS_BIAS
        )  # fmt: skip
        dtaps_back = dtaps
    x_step = tl.full([], -1 if REVERSE else 1, tl.int64) * x_l
    dy_step = tl.full([], -1 if REVERSE else 1, tl.int64) * dy_l
    dx_step = tl.full([], -1 if REVERSE else 1, tl.int64) * dx_l
    x_0 = (tl.full([], 0, tl.int64) + length - 1) * x_l if REVERSE else tl.full([], 0, tl.int64)
    dy_0 = (tl.full([], 0, tl.int64) + length - 1) * dy_l if REVERSE else tl.full([], 0, tl.int64)
    dx_0 = (tl.full([], 0, tl.int64) + length - 1) * dx_l if REVERSE else tl.full([], 0, tl.int64)
    x += d64[None, :] * x_d
    dy += d64[None, :] * dy_d
    dx += d64[None, :] * dx_d
    initial += d64[None, :] * initial_d
    dfinal += d64[None, :] * dfinal_d
    dinitial += d64[None, :] * dinitial_d
    program = (tl.program_id(0) // blocks).to(tl.int64)
    for begin in range(program * ROWS, tasks, tl.num_programs(0) // blocks * ROWS):
        task = begin + tl.arange(0, ROWS)
        batch, first, stop = _task(task, tasks, parts, part_length, length)
        on = (task < tasks)[:, None] & on_d
        x_row, dy_row, dx_row = x_0 + batch * x_b, dy_0 + batch * dy_b, dx_0 + batch * dx_b
        window = ()
        grads = ()
        for i in tl.static_range(lag):
            rank = first - lag + i
            window = window + (
                _history(
                    x, initial + (batch * initial_b)[:, None], rank, on, x_row + rank * x_step, initial_l, WIDTH,
                    HAS_INITIAL,
                ),
            )  # fmt: skip
            grads = grads + (zero,)
        if BOTH:
            grads_back = grads
        x_at = x + (x_row + first * x_step)[:, None]
        dy_at = dy + (dy_row + first * dy_step)[:, None]
        dx_at = dx + (dx_row + (first - lag) * dx_step)[:, None]
        # Ranks of the part, and of the sequence from its start on.
        own = (stop - first).to(tl.int32)[:, None]
        ahead = tl.minimum(length - first, part_length + lag).to(tl.int32)[:, None]
        for s in range(0, part_length + lag, STEPS):
            xs = ()
            dys = ()
            dys_back = ()
            for i in tl.static_range(STEPS):
                there = on & (s + i < ahead)
                xs = xs + (tl.load(x_at + i * x_step, mask=there, other=0.0),)
                dys = dys + (tl.load(dy_at + i * dy_step, mask=there, other=0.0),)
                if BOTH:
                    there = on & (s + i - lag < own) & ((first + s + i)[:, None] >= lag)
                    dys_back = dys_back + (tl.load(dy_at + ((i - lag) * dy_step + dy_k), mask=there, other=0.0),)
            for i in tl.static_range(STEPS):
                window = window + (xs[i].to(tl.float32),)
                grad = dys[i].to(tl.float32)
                if SILU:
                    grad = grad * silu_slope(_along(taps, window, shift, WIDTH))
                grads = grads + (grad,)
                into = _against(taps, grads, zero, WIDTH)
                # The ranks from the part's end on are read for dx alone: the next part sums them.
                counted = tl.where(s + i < own, grad, 0.0)
                sums_now = ()
                for w in tl.static_range(WIDTH):
                    sums_now = sums_now + (dtaps[w] + counted * window[w],)
                dtaps = sums_now + (dtaps[WIDTH] + counted,)
                complete = on & (s + i - lag < own) & (s + i >= lag)
                if BOTH:
                    grad = dys_back[i].to(tl.float32)
                    if SILU:
                        grad = grad * silu_slope(_against(taps_back, window, shift_back, WIDTH))
                    grads_back = grads_back + (grad,)
                    into = _along(taps_back, grads_back, into, WIDTH)
                    counted = tl.where(complete, grad, 0.0)
                    sums_now = ()
                    for w in tl.static_range(WIDTH):
                        sums_now = sums_now + (dtaps_back[w] + counted * window[WIDTH - 1 - w],)
                    dtaps_back = sums_now + (dtaps_back[WIDTH] + counted,)
                    grads_back = grads_back[1:]
                behind = first + (s + i - lag)
                if HAS_DFINAL:
                    kept = on & ((behind >= length - lag) & (behind < stop))[:, None]
                    at = batch * dfinal_b + (behind - length + lag) * dfinal_l
                    into += tl.load(dfinal + at[:, None], mask=kept, other=0.0).to(tl.float32)
                tl.store(dx_at + i * dx_step, into.to(dx.dtype.element_ty), mask=complete)
                if HAS_INITIAL:
                    at = batch * dinitial_b + (behind + lag) * dinitial_l
                    before = on & (behind < 0)[:, None]
                    tl.store(dinitial + at[:, None], into.to(dinitial.dtype.element_ty), mask=before)
                window = window[1:]
                grads = grads[1:]
            x_at += STEPS * x_step
            dy_at += STEPS * dy_step
            dx_at += STEPS * dx_step
    terms: tl.constexpr = WIDTH + 1 if HAS_BIAS else WIDTH
    sums += program * (2 * terms if BOTH else terms) * channels + d64
    for term in tl.static_range(terms):
        tl.store(sums + term * channels, tl.sum(dtaps[term], axis=0), mask=d < channels)
        if BOTH:
            tl.store(sums + (terms + term) * channels, tl.sum(dtaps_back[term], axis=0), mask=d < channels)


@triton.jit
def turn(
    x, y, channels, length, x_b, x_d, x_l, y_b, y_d, y_l, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Copy one tile of x (B, D, L), where time is contiguous, to y, where channels are, or the other way around."""
    blocks = tl.cdiv(length, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    on = (at < length)[:, None] & (d < channels)[None, :]
    value = tl.load(x + batch * x_b + at[:, None] * x_l + d[None, :] * x_d, mask=on, other=0.0)
    tl.store(y + batch * y_b + at[:, None] * y_l + d[None, :] * y_d, value, mask=on)
