"""The forward scan on a GPU: one lane a channel, its states in registers, time walked in order.

A program takes a block of channels of one sequence, or of one part of it: where sequences and channels are too few to
fill the GPU, time is cut into parts. Then the kernel runs twice: first with ``ENDS``, for the state at each part's end
starting from zero and the part's decay; then, with the true state entering each part, for the output.

State tiles are (N, channels) in memory, so that the lanes of a warp are channels and sums over N stay in one lane.
Positions are counted in reading order; ``WALK`` says where in memory they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.selective_scan.triton_steps import REAL, RESET, columns, position
from mamba_kernels.triton_math import LOG2E, exp2, softplus


@triton.jit
def scan_forward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, out, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l,
    z_b, z_k, z_d, z_l, out_b, out_k, out_d, out_l,
    N_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, WALK: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MARKS: tl.constexpr,
    HAS_ENTERING: tl.constexpr, ENDS: tl.constexpr, SAVE: tl.constexpr, ADD: tl.constexpr = False,
):  # fmt: skip
    """Scan one part of one sequence for one block of channels; see `triton.py` for the arguments."""
    blocks = tl.cdiv(channels, BLOCK)
    block = tl.program_id(0) % blocks
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    batch = sequence // readings
    reading = sequence % readings
    part = tl.program_id(1).to(tl.int64)
    d = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N_PAD)
    on_d, on_n = d < channels, n < states
    on = on_n[:, None] & on_d[None, :]
    d64 = d.to(tl.int64)
    group = (block * BLOCK // group_channels).to(tl.int64)
    state_at = n[:, None] + d64[None, :] * states
    check_at = n[:, None].to(tl.int64) * channels + d64[None, :]
    state_size = tl.full([], 1, tl.int64) * states * channels
    marks += batch * marks_b + reading * marks_k
    order += reading * length
    A += reading * state_size
    D += reading * channels
    bias += reading * channels
    A2 = tl.load(A + state_at, mask=on, other=0.0) * LOG2E
    bias_d = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        bias_d = tl.load(bias + d, mask=on_d, other=0.0).to(tl.float32)
    skip_d = tl.zeros([BLOCK], tl.float32)
    if HAS_D:
        skip_d = tl.load(D + d, mask=on_d, other=0.0).to(tl.float32)
    if B_VARIES:
        B += batch * B_b + reading * B_k + (group // B_share) * B_g + n.to(tl.int64) * B_n
    else:
        B_fixed = tl.load(B + state_at, mask=on, other=0.0).to(tl.float32)
    if C_VARIES:
        C += batch * C_b + reading * C_k + (group // C_share) * C_g + n.to(tl.int64) * C_n
    else:
        C_fixed = tl.load(C + state_at, mask=on, other=0.0).to(tl.float32)
    h = tl.zeros([N_PAD, BLOCK], tl.float32)
    if HAS_ENTERING:
        h = tl.load(
            entering + ((batch * parts + part) * readings + reading) * state_size + state_at, mask=on, other=0.0
        )
    total = tl.zeros([BLOCK], tl.float32)
    alive = 1.0
    first = part * part_length
    stop = tl.minimum(first + part_length, length)
    u += batch * u_b + reading * u_k + d64 * u_d
    delta += batch * delta_b + reading * delta_k + d64 * delta_d
    if not ENDS:
        out += batch * out_b + reading * out_k + d64 * out_d
    if HAS_Z:
        z += batch * z_b + reading * z_k + d64 * z_d
    for t0 in range(first, stop, STEPS):
        if SAVE:
            if t0 % CHUNK == 0:
                chunk = sequence * tl.cdiv(length, CHUNK) + t0 // CHUNK
                tl.store(checkpoints + chunk * state_size + check_at, h, mask=on)
        # All loads of these steps come before their arithmetic, so that they are in flight together.
        k = tl.arange(0, STEPS)
        at = position(order, t0 + k, stop, length, WALK)
        there = on_n[:, None] & (t0 + k < stop)[None, :]
        if HAS_MARKS:
            mark_rows = tl.load(marks + t0 + k, mask=t0 + k < stop, other=0)
            there = there & ((mark_rows & REAL) != 0)[None, :]
        if B_VARIES:
            tile = tl.load(B[:, None] + at[None, :] * B_l, mask=there, other=0.0)
            Bs = columns(tile.to(tl.float32), N_PAD, STEPS)
        if C_VARIES and not ENDS:
            tile = tl.load(C[:, None] + at[None, :] * C_l, mask=there, other=0.0)
            Cs = columns(tile.to(tl.float32), N_PAD, STEPS)
        us = ()
        deltas = ()
        zs = ()
        mark = ()
        for i in tl.static_range(STEPS):
            inside = t0 + i < stop
            pos = position(order, t0 + i, stop, length, WALK)
            us = us + (tl.load(u + pos * u_l, mask=on_d & inside, other=0.0),)
            deltas = deltas + (tl.load(delta + pos * delta_l, mask=on_d & inside, other=0.0),)
            if HAS_Z and not ENDS:
                zs = zs + (tl.load(z + pos * z_l, mask=on_d & inside, other=0.0),)
            if HAS_MARKS:
                mark = mark + (tl.load(marks + t0 + i, mask=inside, other=0),)
        for i in tl.static_range(STEPS):
            inside = t0 + i < stop
            pos = position(order, t0 + i, stop, length, WALK)
            dt = deltas[i].to(tl.float32) + bias_d
            if SOFTPLUS:
                dt = softplus(dt)
            # A step of size 0 leaves the state as it is: padding, and positions past the end.
            dt = tl.where(inside, dt, 0.0)
            if HAS_MARKS:
                dt = tl.where((mark[i] & REAL) != 0, dt, 0.0)
                keep = tl.where((mark[i] & RESET) != 0, 0.0, 1.0)
                h = h * keep
                alive = alive * keep
            x = us[i].to(tl.float32)
            if HAS_MARKS:
                x = tl.where((mark[i] & REAL) != 0, x, 0.0)
            if ENDS:
                if HAS_MARKS:
                    total = total * keep
                total += dt
            if B_VARIES:
                h = exp2(dt[None, :] * A2) * h + Bs[i][:, None] * (dt * x)[None, :]
            else:
                h = exp2(dt[None, :] * A2) * h + B_fixed * (dt * x)[None, :]
            if not ENDS:
                if C_VARIES:
                    y = tl.sum(h * Cs[i][:, None], axis=0)
                else:
                    y = tl.sum(h * C_fixed, axis=0)
                if HAS_D:
                    y += skip_d * x
                if HAS_Z:
                    gate = zs[i].to(tl.float32)
                    y = y * gate / (1.0 + tl.exp(-gate))
                if HAS_MARKS:
                    y = tl.where((mark[i] & REAL) != 0, y, 0.0)
                if ADD:
                    y += tl.load(out + pos * out_l, mask=on_d & inside, other=0.0)
                tl.store(out + pos * out_l, y.to(out.dtype.element_ty), mask=on_d & inside)
    if ENDS:
        here = ((batch * parts + part) * readings + reading) * state_size + state_at
        tl.store(leaving + here, h, mask=on)
        tl.store(decays + here, exp2(total[None, :] * A2) * alive, mask=on)
    elif part == parts - 1:
        tl.store(leaving + sequence * state_size + state_at, h, mask=on)
