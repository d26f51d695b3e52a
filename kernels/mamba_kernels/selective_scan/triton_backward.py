"""The backward scan on a GPU: chunk by chunk from the end, each chunk's states found anew from its checkpoint.

Within a chunk the states at every ``STEPS`` positions go to a scratch tile in memory (they stay in the cache); then,
from the chunk's end, the ``STEPS`` states in between are found once more, kept in registers, and walked back. Decayed
states a*h(t-1) are computed, never obtained by subtraction. Sums over time stay in registers; the sums of dB and dC
over channels are taken in one block and left to be added over blocks, without atomics.

As in the forward scan, time may be cut into parts; with ``ENDS`` the kernel only finds what flows out of each part
towards the past, and the part's decay.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.selective_scan.triton_steps import REAL, RESET, columns, position
from mamba_kernels.triton_math import LN2, LOG2E, exp2, softplus


@triton.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, scratch, dout,
    du, ddelta, dA, dB, dC, dD, dz, dbias, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings, blocks,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l, z_b, z_k, z_d, z_l,
    dout_b, dout_k, dout_d, dout_l, du_b, du_k, du_d, du_l, ddelta_b, ddelta_k, ddelta_d, ddelta_l,
    dz_b, dz_k, dz_d, dz_l,
    N_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, WALK: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MARKS: tl.constexpr,
    HAS_ENTERING: tl.constexpr, ENDS: tl.constexpr, ADD: tl.constexpr = False,
):  # fmt: skip
    """Walk one part of one sequence back for one block of channels; see `triton.py` for the arguments."""
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
    first = part * part_length
    stop = tl.minimum(first + part_length, length)
    u += batch * u_b + reading * u_k + d64 * u_d
    delta += batch * delta_b + reading * delta_k + d64 * delta_d
    dout += batch * dout_b + reading * dout_k + d64 * dout_d
    if HAS_Z:
        z += batch * z_b + reading * z_k + d64 * z_d
    dh = tl.zeros([N_PAD, BLOCK], tl.float32)
    if HAS_ENTERING:
        dh = tl.load(
            entering + ((batch * parts + part) * readings + reading) * state_size + state_at, mask=on, other=0.0
        )
    if ENDS:
        total = tl.zeros([BLOCK], tl.float32)
        alive = 1.0
    else:
        du += batch * du_b + reading * du_k + d64 * du_d
        ddelta += batch * ddelta_b + reading * ddelta_k + d64 * ddelta_d
        if HAS_Z:
            dz += batch * dz_b + reading * dz_k + d64 * dz_d
        # Sums over this block's channels go to (B, blocks, L, N), added over blocks afterwards.
        if B_VARIES:
            dB += (sequence * blocks + block) * length * states + n
        if C_VARIES:
            dC += (sequence * blocks + block) * length * states + n
        kept = tl.cdiv(tl.minimum(length, CHUNK), STEPS)
        scratch += ((sequence * parts + part) * blocks + block) * kept * N_PAD * BLOCK
        tile_at = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        dA_sum = tl.zeros([N_PAD, BLOCK], tl.float32)
        dB_sum = tl.zeros([N_PAD, BLOCK], tl.float32)
        dC_sum = tl.zeros([N_PAD, BLOCK], tl.float32)
        dD_sum = tl.zeros([BLOCK], tl.float32)
        dbias_sum = tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(stop - first, CHUNK)
    for j in range(0, chunks):
        begin = first + (chunks - 1 - j) * CHUNK
        end = tl.minimum(begin + CHUNK, stop)
        if not ENDS:
            chunk = sequence * tl.cdiv(length, CHUNK) + begin // CHUNK
            h = tl.load(checkpoints + chunk * state_size + check_at, mask=on, other=0.0)
            for t0 in range(begin, end, STEPS):
                tl.store(scratch + (t0 - begin) // STEPS * (N_PAD * BLOCK) + tile_at, h)
                k = tl.arange(0, STEPS)
                at = position(order, t0 + k, stop, length, WALK)
                there = on_n[:, None] & (t0 + k < end)[None, :]
                if HAS_MARKS:
                    mark_rows = tl.load(marks + t0 + k, mask=t0 + k < end, other=0)
                    there = there & ((mark_rows & REAL) != 0)[None, :]
                if B_VARIES:
                    tile = tl.load(B[:, None] + at[None, :] * B_l, mask=there, other=0.0)
                    Bs = columns(tile.to(tl.float32), N_PAD, STEPS)
                us = ()
                deltas = ()
                mark = ()
                for i in tl.static_range(STEPS):
                    inside = t0 + i < end
                    pos = position(order, t0 + i, stop, length, WALK)
                    us = us + (tl.load(u + pos * u_l, mask=on_d & inside, other=0.0),)
                    deltas = deltas + (tl.load(delta + pos * delta_l, mask=on_d & inside, other=0.0),)
                    if HAS_MARKS:
                        mark = mark + (tl.load(marks + t0 + i, mask=inside, other=0),)
                for i in tl.static_range(STEPS):
                    dt = deltas[i].to(tl.float32) + bias_d
                    if SOFTPLUS:
                        dt = softplus(dt)
                    dt = tl.where(t0 + i < end, dt, 0.0)
                    x = us[i].to(tl.float32)
                    if HAS_MARKS:
                        dt = tl.where((mark[i] & REAL) != 0, dt, 0.0)
                        x = tl.where((mark[i] & REAL) != 0, x, 0.0)
                        h = h * tl.where((mark[i] & RESET) != 0, 0.0, 1.0)
                    if B_VARIES:
                        h = exp2(dt[None, :] * A2) * h + Bs[i][:, None] * (dt * x)[None, :]
                    else:
                        h = exp2(dt[None, :] * A2) * h + B_fixed * (dt * x)[None, :]
            # The scratch tiles are read back in another layout perhaps, so by other lanes.
            tl.debug_barrier()
        pieces = tl.cdiv(end - begin, STEPS)
        for r in range(0, pieces):
            t0 = begin + (pieces - 1 - r) * STEPS
            k = tl.arange(0, STEPS)
            at = position(order, t0 + k, stop, length, WALK)
            there = on_n[:, None] & (t0 + k < end)[None, :]
            if HAS_MARKS:
                mark_rows = tl.load(marks + t0 + k, mask=t0 + k < end, other=0)
                there = there & ((mark_rows & REAL) != 0)[None, :]
            if B_VARIES and not ENDS:
                tile = tl.load(B[:, None] + at[None, :] * B_l, mask=there, other=0.0)
                Bs = columns(tile.to(tl.float32), N_PAD, STEPS)
            if C_VARIES:
                tile = tl.load(C[:, None] + at[None, :] * C_l, mask=there, other=0.0)
                Cs = columns(tile.to(tl.float32), N_PAD, STEPS)
            us = ()
            deltas = ()
            zs = ()
            douts = ()
            mark = ()
            for i in tl.static_range(STEPS):
                inside = t0 + i < end
                pos = position(order, t0 + i, stop, length, WALK)
                deltas = deltas + (tl.load(delta + pos * delta_l, mask=on_d & inside, other=0.0),)
                douts = douts + (tl.load(dout + pos * dout_l, mask=on_d & inside, other=0.0),)
                if HAS_Z:
                    zs = zs + (tl.load(z + pos * z_l, mask=on_d & inside, other=0.0),)
                if HAS_MARKS:
                    mark = mark + (tl.load(marks + t0 + i, mask=inside, other=0),)
                if not ENDS:
                    us = us + (tl.load(u + pos * u_l, mask=on_d & inside, other=0.0),)
            decayed = ()
            if not ENDS:
                h = tl.load(scratch + (t0 - begin) // STEPS * (N_PAD * BLOCK) + tile_at)
                for i in tl.static_range(STEPS):
                    dt = deltas[i].to(tl.float32) + bias_d
                    if SOFTPLUS:
                        dt = softplus(dt)
                    dt = tl.where(t0 + i < end, dt, 0.0)
                    x = us[i].to(tl.float32)
                    if HAS_MARKS:
                        dt = tl.where((mark[i] & REAL) != 0, dt, 0.0)
                        x = tl.where((mark[i] & REAL) != 0, x, 0.0)
                        h = h * tl.where((mark[i] & RESET) != 0, 0.0, 1.0)
                    h = exp2(dt[None, :] * A2) * h
                    decayed = decayed + (h,)
                    if B_VARIES:
                        h += Bs[i][:, None] * (dt * x)[None, :]
                    else:
                        h += B_fixed * (dt * x)[None, :]
            for i in tl.static_range(STEPS - 1, -1, -1):
                inside = t0 + i < end
                pos = position(order, t0 + i, stop, length, WALK)
                raw = deltas[i].to(tl.float32) + bias_d
                dt = raw
                if SOFTPLUS:
                    dt = softplus(raw)
                real = inside
                if HAS_MARKS:
                    real = real & ((mark[i] & REAL) != 0)
                dt = tl.where(real, dt, 0.0)
                dy = tl.where(real, douts[i].to(tl.float32), 0.0)
                if C_VARIES:
                    C_t = Cs[i][:, None]
                else:
                    C_t = C_fixed
                if HAS_Z:
                    gate = zs[i].to(tl.float32)
                    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
                if ENDS:
                    if HAS_Z:
                        dy = tl.where(real, dy * gate * sigmoid, 0.0)
                    dh += C_t * dy[None, :]
                    total += dt
                else:
                    x = tl.where(real, us[i].to(tl.float32), 0.0)
                    if B_VARIES:
                        B_t = Bs[i][:, None]
                    else:
                        B_t = B_fixed
                    h_t = decayed[i] + B_t * (dt * x)[None, :]
                    if HAS_Z:
                        y = tl.sum(h_t * C_t, axis=0) + skip_d * x
                        dgate = tl.where(real, dy * y * sigmoid * (1.0 + gate * (1.0 - sigmoid)), 0.0)
                        if ADD:
                            dgate += tl.load(dz + pos * dz_l, mask=on_d & inside, other=0.0)
                        tl.store(dz + pos * dz_l, dgate.to(dz.dtype.element_ty), mask=on_d & inside)
                        dy = tl.where(real, dy * gate * sigmoid, 0.0)
                    if C_VARIES:
                        tl.store(dC + pos * states, tl.sum(h_t * dy[None, :], axis=1), mask=on_n & inside)
                    else:
                        dC_sum += h_t * dy[None, :]
                    dh += C_t * dy[None, :]
                    pull = dh * decayed[i]
                    dA_sum += pull * dt[None, :]
                    drive = tl.sum(dh * B_t, axis=0)
                    if B_VARIES:
                        tl.store(dB + pos * states, tl.sum(dh * (dt * x)[None, :], axis=1), mask=on_n & inside)
                    else:
                        dB_sum += dh * (dt * x)[None, :]
                    ddt = tl.sum(pull * A2, axis=0) * LN2 + drive * x
                    if SOFTPLUS:
                        ddt = tl.where(raw > 20.0, ddt, ddt / (1.0 + tl.exp(-raw)))
                    ddt = tl.where(real, ddt, 0.0)
                    if HAS_D:
                        dD_sum += dy * x
                    if HAS_BIAS:
                        dbias_sum += ddt
                    dx = tl.where(real, drive * dt + skip_d * dy, 0.0)
                    if ADD:
                        dx += tl.load(du + pos * du_l, mask=on_d & inside, other=0.0)
                        ddt += tl.load(ddelta + pos * ddelta_l, mask=on_d & inside, other=0.0)
                    tl.store(du + pos * du_l, dx.to(du.dtype.element_ty), mask=on_d & inside)
                    tl.store(ddelta + pos * ddelta_l, ddt.to(ddelta.dtype.element_ty), mask=on_d & inside)
                dh = dh * exp2(dt[None, :] * A2)
                if HAS_MARKS:
                    keep = tl.where((mark[i] & RESET) != 0, 0.0, 1.0)
                    dh = dh * keep
                    if ENDS:
                        alive = alive * keep
        if not ENDS:
            tl.debug_barrier()
    here = ((batch * parts + part) * readings + reading) * state_size + state_at
    if ENDS:
        tl.store(leaving + here, dh, mask=on)
        tl.store(decays + here, exp2(total[None, :] * A2) * alive, mask=on)
    else:
        if part == 0:
            tl.store(leaving + sequence * state_size + state_at, dh, mask=on)
        tl.store(dA + here, dA_sum, mask=on)
        if not B_VARIES:
            tl.store(dB + here, dB_sum, mask=on)
        if not C_VARIES:
            tl.store(dC + here, dC_sum, mask=on)
        if HAS_D:
            tl.store(dD + ((batch * parts + part) * readings + reading) * channels + d, dD_sum, mask=on_d)
        if HAS_BIAS:
            tl.store(dbias + ((batch * parts + part) * readings + reading) * channels + d, dbias_sum, mask=on_d)
