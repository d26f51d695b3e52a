"""The causal convolution's GPU kernels: a program convolves a tile of positions and channels of one sequence.

Positions are counted in reading order, without padding (ranks): ``steps`` says where each rank stands in memory and
``reach`` how many ranks of history it may read; without segments both follow from the length. Taps are read anew for
each output from the cache, and the backward finds the values before the activation again.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Taps up to which loops over them are unrolled. The backward finds all taps again for each, and the compiler takes
# minutes over the square of a wide filter.
UNROLLED = tl.constexpr(4)


@triton.jit
def _place(steps, rank, batch, length, REVERSE: tl.constexpr, HAS_STEPS: tl.constexpr, inside):
    """Return where ``rank`` stands in memory."""
    if HAS_STEPS:
        return tl.load(steps + batch * length + rank, mask=inside, other=0).to(tl.int64)
    elif REVERSE:
        return length - 1 - rank
    else:
        return rank


@triton.jit
def _input(
    x, initial, steps, rank, count, d64, on_d, batch, length, history, x_d, x_l, initial_d, initial_l,
    REVERSE: tl.constexpr, HAS_STEPS: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Return the inputs at ``rank`` (rows) of channels ``d64`` (columns), the initial states before rank 0."""
    inside = (rank >= 0) & (rank < count)
    at = _place(steps, rank, batch, length, REVERSE, HAS_STEPS, inside)
    value = tl.load(
        x + at[:, None] * x_l + d64[None, :] * x_d, mask=inside[:, None] & on_d[None, :], other=0.0
    ).to(tl.float32)  # fmt: skip
    if HAS_INITIAL:
        before = (rank < 0) & (rank >= -history)
        value += tl.load(
            initial + (rank + history)[:, None] * initial_l + d64[None, :] * initial_d,
            mask=before[:, None] & on_d[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
    return value


@triton.jit
def _before_activation(
    x, weight, bias_d, initial, steps, reach, rank, count, d64, on_d, batch, length,
    x_d, x_l, weight_d, weight_w, initial_d, initial_l,
    WIDTH: tl.constexpr, REVERSE: tl.constexpr, HAS_STEPS: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Return the convolution at ``rank`` before its activation."""
    total = bias_d[None, :] + tl.zeros([rank.shape[0], d64.shape[0]], tl.float32)
    if HAS_STEPS:
        reachable = tl.load(reach + batch * length + rank, mask=(rank >= 0) & (rank < count), other=0)
    for back in (tl.static_range if WIDTH <= UNROLLED else tl.range)(WIDTH):
        tap = _input(
            x, initial, steps, rank - back, count, d64, on_d, batch, length, WIDTH - 1, x_d, x_l,
            initial_d, initial_l, REVERSE, HAS_STEPS, HAS_INITIAL,
        )  # fmt: skip
        if HAS_STEPS:
            tap = tl.where((reachable >= back)[:, None], tap, 0.0)
        w = tl.load(weight + d64 * weight_d + (WIDTH - 1 - back) * weight_w, mask=on_d, other=0.0).to(tl.float32)
        total += w[None, :] * tap
    return total


@triton.jit
def _kept(rank, reach, count, batch, length, WIDTH: tl.constexpr, HAS_STEPS: tl.constexpr):
    """Return whether ``rank`` is among the final states: the last ``WIDTH - 1`` inputs, of the last segment alone."""
    kept = (rank >= count - (WIDTH - 1)) & (rank < count)
    if HAS_STEPS:
        # Where there is only padding the initial states are the final ones.
        last = tl.load(reach + batch * length + count - 1, mask=count > 0, other=WIDTH)
        kept = kept & (count - 1 - rank <= last)
    return kept


@triton.jit
def conv_forward(
    x, weight, bias, initial, steps, reach, counts, y, final,
    channels, length, blocks, x_b, x_d, x_l, weight_d, weight_w, initial_b, initial_d, initial_l, y_b, y_d, y_l,
    final_b, final_d, final_l, KEEP: tl.constexpr, HAS_FINAL: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STEPS: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Write ``y`` for ``ROWS`` ranks and ``COLUMNS`` channels of one sequence, the first tile also the final states.

    ``KEEP`` is a power of two that holds the final states' ``WIDTH - 1``.
    """
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    rank = block * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    on_d = d < channels
    d64 = d.to(tl.int64)
    count = length
    if HAS_STEPS:
        count = tl.load(counts + batch)
    bias_d = tl.zeros([COLUMNS], tl.float32)
    if HAS_BIAS:
        bias_d = tl.load(bias + d, mask=on_d, other=0.0).to(tl.float32)
    total = _before_activation(
        x + batch * x_b, weight, bias_d, initial + batch * initial_b, steps, reach, rank, count, d64, on_d, batch,
        length, x_d, x_l, weight_d, weight_w, initial_d, initial_l, WIDTH, REVERSE, HAS_STEPS, HAS_INITIAL,
    )  # fmt: skip
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    at = _place(steps, rank, batch, length, REVERSE, HAS_STEPS, rank < count)
    tl.store(
        y + batch * y_b + at[:, None] * y_l + d64[None, :] * y_d, total.to(y.dtype.element_ty),
        mask=(rank < count)[:, None] & on_d[None, :],
    )  # fmt: skip
    if WIDTH > 1 and HAS_FINAL:
        if block == 0:
            slot = tl.arange(0, KEEP)
            final_rank = count - (WIDTH - 1) + slot.to(tl.int64)
            value = _input(
                x + batch * x_b, initial + batch * initial_b, steps, final_rank, count, d64, on_d, batch, length,
                WIDTH - 1, x_d, x_l, initial_d, initial_l, REVERSE, HAS_STEPS, HAS_INITIAL,
            )  # fmt: skip
            kept = _kept(final_rank, reach, count, batch, length, WIDTH, HAS_STEPS)
            tl.store(
                final + batch * final_b + slot[:, None] * final_l + d64[None, :] * final_d,
                tl.where(kept[:, None], value, 0.0).to(final.dtype.element_ty),
                mask=(slot < WIDTH - 1)[:, None] & on_d[None, :],
            )  # fmt: skip


@triton.jit
def conv_backward(
    dy, dfinal, x, weight, bias, initial, steps, reach, counts, dx, sums, dinitial,
    channels, length, blocks, dy_b, dy_d, dy_l, dfinal_b, dfinal_d, dfinal_l, x_b, x_d, x_l, weight_d, weight_w,
    initial_b, initial_d, initial_l,
    dx_b, dx_d, dx_l, dinitial_b, dinitial_d, dinitial_l,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STEPS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_DFINAL: tl.constexpr,
):  # fmt: skip
    """Write dx for ``ROWS`` ranks, and this tile's sums of dweight and dbias (B, blocks, W + 1, D).

    With initial states the first tile begins ``WIDTH - 1`` ranks before 0, and writes dinitial there.
    """
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    history: tl.constexpr = WIDTH - 1 if HAS_INITIAL else 0
    rank = block * ROWS + tl.arange(0, ROWS) - history
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    on_d = d < channels
    d64 = d.to(tl.int64)
    count = length
    if HAS_STEPS:
        count = tl.load(counts + batch)
    bias_d = tl.zeros([COLUMNS], tl.float32)
    if HAS_BIAS:
        bias_d = tl.load(bias + d, mask=on_d, other=0.0).to(tl.float32)
    x += batch * x_b
    initial += batch * initial_b
    own = _input(
        x, initial, steps, rank, count, d64, on_d, batch, length, WIDTH - 1, x_d, x_l, initial_d, initial_l,
        REVERSE, HAS_STEPS, HAS_INITIAL,
    )  # fmt: skip
    into = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums += (batch * blocks + block) * (WIDTH + 1) * channels
    for ahead in (tl.static_range if WIDTH <= UNROLLED else tl.range)(WIDTH):
        later = rank + ahead
        inside = (later >= 0) & (later < count)
        at = _place(steps, later, batch, length, REVERSE, HAS_STEPS, inside)
        grad = tl.load(
            dy + batch * dy_b + at[:, None] * dy_l + d64[None, :] * dy_d,
            mask=inside[:, None] & on_d[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        if SILU:
            total = _before_activation(
                x, weight, bias_d, initial, steps, reach, later, count, d64, on_d, batch, length,
                x_d, x_l, weight_d, weight_w, initial_d, initial_l, WIDTH, REVERSE, HAS_STEPS, HAS_INITIAL,
            )  # fmt: skip
            sigmoid = 1.0 / (1.0 + tl.exp(-total))
            grad = grad * sigmoid * (1.0 + total * (1.0 - sigmoid))
        if ahead == 0:
            if HAS_BIAS:
                # Ranks before 0 belong to no output, and have no gradient here.
                tl.store(sums + WIDTH * channels + d, tl.sum(grad, axis=0), mask=on_d)
        if HAS_STEPS:
            reachable = tl.load(reach + batch * length + later, mask=inside, other=0)
            grad = tl.where((reachable >= ahead)[:, None], grad, 0.0)
        w = tl.load(weight + d64 * weight_d + (WIDTH - 1 - ahead) * weight_w, mask=on_d, other=0.0).to(tl.float32)
        into += w[None, :] * grad
        # The rank itself is the tap `ahead` back of the later one, so each pair is met once.
        tl.store(sums + (WIDTH - 1 - ahead) * channels + d, tl.sum(grad * own, axis=0), mask=on_d)
    if HAS_DFINAL:
        kept = _kept(rank, reach, count, batch, length, WIDTH, HAS_STEPS)
        into += tl.load(
            dfinal + batch * dfinal_b + (rank - count + WIDTH - 1)[:, None] * dfinal_l + d64[None, :] * dfinal_d,
            mask=kept[:, None] & on_d[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
    inside = (rank >= 0) & (rank < count)
    at = _place(steps, rank, batch, length, REVERSE, HAS_STEPS, inside)
    tl.store(
        dx + batch * dx_b + at[:, None] * dx_l + d64[None, :] * dx_d, into.to(dx.dtype.element_ty),
        mask=inside[:, None] & on_d[None, :],
    )  # fmt: skip
    if HAS_INITIAL:
        before = (rank < 0) & (rank >= -(WIDTH - 1))
        tl.store(
            dinitial + batch * dinitial_b + (rank + WIDTH - 1)[:, None] * dinitial_l + d64[None, :] * dinitial_d,
            into.to(dinitial.dtype.element_ty), mask=before[:, None] & on_d[None, :],
        )  # fmt: skip
