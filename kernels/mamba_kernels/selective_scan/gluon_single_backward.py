"""The backward scan with one state a channel, on a Hopper GPU.

A program takes 32 channels of one sequence, or of one part of it, and walks its time in tiles from the end. All
positions of a tile are worked on at once: its states, found anew from the checkpoint before it, and the gradients that
flow through them towards the past; see `gluon_single_steps.py`. Decayed states a*h(t-1) are computed, never obtained by
subtraction. Sums over time stay in registers; sums over channels are taken in one block and left to be added over
blocks, without atomics.

Arguments and results are those of `triton_backward.scan_backward`, which runs on any GPU.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mamba_kernels.selective_scan.gluon_single_steps import (
    CHANNELS,
    LENGTH,
    flow,
    memory_layout,
    positions_of,
    segment_layout,
    sums_over_channels,
    tile_layout,
    tile_of,
)
from mamba_kernels.selective_scan.gluon_steps import (
    LN2,
    LOG2E,
    exp2,
    keep_of,
    load_tile,
    offsets,
    position,
    real_rows,
    rows_of_tile,
    sigmoid,
    softplus,
    store_tile,
)


@gluon.jit
def sum_in_segments(x):
    """Return the sums (segments, channels) of a tile over the positions of its segments."""
    return gl.sum(x.reshape([x.shape[0] // LENGTH, LENGTH, x.shape[1]]), axis=1)


@gluon.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, scratch, dout,
    du, ddelta, dA, dB, dC, dD, dz, dbias, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings, blocks,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l, z_b, z_k, z_d, z_l,
    dout_b, dout_k, dout_d, dout_l, du_b, du_k, du_d, du_l, ddelta_b, ddelta_k, ddelta_d, ddelta_l,
    dz_b, dz_k, dz_d, dz_l,
    STEPS: gl.constexpr,
    SOFTPLUS: gl.constexpr, WALK: gl.constexpr, HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_MARKS: gl.constexpr, HAS_ENTERING: gl.constexpr, ENDS: gl.constexpr,
    TIME_FAST: gl.constexpr, WIDE: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """Walk one part of one sequence back for one block of channels."""
    LAYOUT: gl.constexpr = tile_layout(num_warps)
    SEGMENTS: gl.constexpr = segment_layout(num_warps)
    TIMES: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    EACH: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    SUMS: gl.constexpr = gl.BlockedLayout([1, 1], [2, 16], [num_warps, 1], [1, 0])
    U_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[0]), WIDE)
    DELTA_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[1]), WIDE)
    Z_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[4]), WIDE)
    DOUT_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[5]), WIDE)
    TILE: gl.constexpr = (STEPS, CHANNELS, LAYOUT, WIDE)
    ROWS: gl.constexpr = STEPS // LENGTH
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    block = gl.program_id(0) % blocks
    sequence = (gl.program_id(0) // blocks).to(gl.int64)
    batch = sequence // readings
    reading = sequence % readings
    part = gl.program_id(1)
    d0 = block * CHANNELS
    d = d0 + gl.arange(0, CHANNELS, gl.SliceLayout(0, SEGMENTS))
    on = (d < channels)[None, :]
    group = (d0 // group_channels).to(gl.int64)
    state_size = gl.to_tensor(channels).to(gl.int64)
    u += batch * u_b + reading * u_k
    delta += batch * delta_b + reading * delta_k
    dout += batch * dout_b + reading * dout_k
    B += batch * B_b + reading * B_k + (group // B_share) * B_g
    C += batch * C_b + reading * C_k + (group // C_share) * C_g
    marks += batch * marks_b + reading * marks_k
    order += reading * length
    d_t = d0 + gl.arange(0, CHANNELS, gl.SliceLayout(0, LAYOUT))
    A2 = gl.load(A + reading * channels + d_t, mask=d_t < channels, other=0.0) * LOG2E
    if HAS_Z:
        z += batch * z_b + reading * z_k
    if HAS_BIAS:
        bias_d = gl.load(bias + reading * channels + d_t, mask=d_t < channels, other=0.0).to(gl.float32)
    if HAS_D:
        skip_d = gl.load(D + reading * channels + d_t, mask=d_t < channels, other=0.0).to(gl.float32)
    du += batch * du_b + reading * du_k
    ddelta += batch * ddelta_b + reading * ddelta_k
    if HAS_Z:
        dz += batch * dz_b + reading * dz_k
    # Sums over this block's channels go to (B, blocks, L, 1), added over blocks afterwards.
    dB += (sequence * blocks + block) * length
    dC += (sequence * blocks + block) * length

    Bs = gl.allocate_shared_memory(gl.float32, [STEPS], LINE)
    Cs = gl.allocate_shared_memory(gl.float32, [STEPS], LINE)
    passed = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)
    added = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)
    passed_back = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)
    added_back = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)

    dA_sum = gl.zeros([ROWS, CHANNELS], gl.float32, SEGMENTS)
    dD_sum = gl.zeros([ROWS, CHANNELS], gl.float32, SEGMENTS)
    dbias_sum = gl.zeros([ROWS, CHANNELS], gl.float32, SEGMENTS)
    dh = gl.zeros([1, CHANNELS], gl.float32, SEGMENTS)
    if HAS_ENTERING:
        here = ((batch * parts + part) * readings + reading) * state_size
        dh = gl.load(entering + here + d[None, :], mask=on, other=0.0)
    alive = gl.zeros([1, CHANNELS], gl.float32, SEGMENTS) + 1.0
    first = part * part_length
    stop = gl.minimum(first + part_length, length)
    tiles = gl.cdiv(stop - first, STEPS)

    t0 = first + (tiles - 1) * STEPS
    t1 = gl.maximum(t0 - STEPS, first)
    each = gl.arange(0, STEPS, EACH)
    rows = rows_of_tile(order, t0, stop, length, WALK, TILE)
    next_rows = rows_of_tile(order, t1, stop, length, WALK, TILE)
    row = position(order, t0 + each, stop, length, WALK)
    next_row = position(order, t1 + each, stop, length, WALK)
    next_delta = load_tile(delta, rows, t0, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
    next_dout = load_tile(dout, rows, t0, d0, dout_l, dout_d, stop, channels, DOUT_TILE)
    next_C = gl.load(C + offsets(row, C_l, TILE), mask=t0 + each < stop, other=0.0)
    if not ENDS:
        next_u = load_tile(u, rows, t0, d0, u_l, u_d, stop, channels, U_TILE)
        next_B = gl.load(B + offsets(row, B_l, TILE), mask=t0 + each < stop, other=0.0)
    for _ in range(0, tiles):
        real = real_rows(marks, t0, stop, HAS_MARKS, TILE)
        Cs.store(next_C.to(gl.float32))
        raw = gl.convert_layout(next_delta, LAYOUT).to(gl.float32)
        dy = gl.convert_layout(next_dout, LAYOUT).to(gl.float32)
        if HAS_Z:
            gate = load_tile(z, rows, t0, d0, z_l, z_d, stop, channels, Z_TILE)
        if not ENDS:
            chunk = sequence * gl.cdiv(length, STEPS) + t0 // STEPS
            h = gl.load(checkpoints + chunk * state_size + d[None, :], mask=on, other=0.0)
            Bs.store(next_B.to(gl.float32))
            x = gl.convert_layout(next_u, LAYOUT).to(gl.float32)
        # The loads of the tile before are in flight while this one is worked on; the first tile is read once more.
        t1 = gl.maximum(t0 - STEPS, first)
        t2 = gl.maximum(t1 - STEPS, first)
        next_delta = load_tile(delta, next_rows, t1, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
        next_dout = load_tile(dout, next_rows, t1, d0, dout_l, dout_d, stop, channels, DOUT_TILE)
        next_C = gl.load(C + offsets(next_row, C_l, TILE), mask=t1 + each < stop, other=0.0)
        if not ENDS:
            next_u = load_tile(u, next_rows, t1, d0, u_l, u_d, stop, channels, U_TILE)
            next_B = gl.load(B + offsets(next_row, B_l, TILE), mask=t1 + each < stop, other=0.0)
        rows_here = rows
        rows = next_rows
        next_rows = rows_of_tile(order, t2, stop, length, WALK, TILE)
        next_row = position(order, t2 + each, stop, length, WALK)
        if HAS_BIAS:
            raw += bias_d[None, :]
        dt = raw
        if SOFTPLUS:
            dt = softplus(raw)
        # A step of size 0 leaves the state as it is: padding, and positions past the end.
        dt = gl.where(real, dt, 0.0)
        a = exp2(dt * A2[None, :])
        if HAS_MARKS:
            a = a * keep_of(marks, t0 + gl.arange(0, STEPS, TIMES), stop)[:, None]
        C_t = Cs.load(TIMES)[:, None]
        before_gate = dy
        if HAS_Z:
            g = gl.convert_layout(gate, LAYOUT).to(gl.float32)
            open_g = sigmoid(g)
            dy *= g * open_g
        # What stands in padding may be anything, the gate too, and 0 times it as well.
        if HAS_MARKS:
            C_t = gl.where(real, C_t, 0.0)
            dy = gl.where(real, dy, 0.0)
        a_p = positions_of(a, SEGMENTS)
        c_p = positions_of(C_t * dy, SEGMENTS)
        decay = a_p[LENGTH - 1]
        sum_p = a_p[LENGTH - 1] * c_p[LENGTH - 1]
        for p in gl.static_range(LENGTH - 2, -1, -1):
            sum_p = a_p[p] * (sum_p + c_p[p])
            decay = decay * a_p[p]
        dh_p, dh = flow(decay, sum_p, dh, passed_back, added_back, True, SEGMENTS)
        if ENDS:
            for i in gl.static_range(num_warps):
                alive = alive * passed_back.slice(2 * i, 1, 0).load(SEGMENTS)
        else:
            B_t = Bs.load(TIMES)[:, None]
            if HAS_MARKS:
                B_t = gl.where(real, B_t, 0.0)
                x = gl.where(real, x, 0.0)
            dx = dt * x
            b = dx * B_t
            b_p = positions_of(b, SEGMENTS)
            sum_p = b_p[0]
            for p in gl.static_range(1, LENGTH):
                sum_p = a_p[p] * sum_p + b_p[p]
            h_p, _ = flow(decay, sum_p, h, passed, added, False, SEGMENTS)
            decayed_p = ()
            for p in gl.static_range(LENGTH):
                h_p = a_p[p] * h_p
                decayed_p = decayed_p + (h_p,)
                h_p = h_p + b_p[p]
            grads_p = ()
            for p in gl.static_range(LENGTH - 1, -1, -1):
                dh_p = dh_p + c_p[p]
                grads_p = (dh_p,) + grads_p
                dh_p = a_p[p] * dh_p
            decayed = tile_of(decayed_p, LAYOUT)
            grad = tile_of(grads_p, LAYOUT)
            state = decayed + b
            sums = sums_over_channels(grad * dx, state * dy)
            pull = grad * decayed
            dA_sum += gl.convert_layout(sum_in_segments(pull * dt), SEGMENTS, assert_trivial=True)
            drive = grad * B_t
            ddt = pull * (A2 * LN2)[None, :] + drive * x
            du_t = drive * dt
            if HAS_D:
                du_t += skip_d[None, :] * dy
                dD_sum += gl.convert_layout(sum_in_segments(dy * x), SEGMENTS, assert_trivial=True)
            if SOFTPLUS:
                ddt = ddt * sigmoid(raw)
            ddt = gl.where(real, ddt, 0.0)
            if HAS_BIAS:
                dbias_sum += gl.convert_layout(sum_in_segments(ddt), SEGMENTS, assert_trivial=True)
            if HAS_MARKS:
                du_t = gl.where(real, du_t, 0.0)
            store_tile(du, du_t, rows_here, t0, d0, du_l, du_d, stop, channels, U_TILE)
            store_tile(ddelta, ddt, rows_here, t0, d0, ddelta_l, ddelta_d, stop, channels, DELTA_TILE)
            if HAS_Z:
                y = state * C_t
                if HAS_D:
                    y += skip_d[None, :] * x
                dgate = before_gate * y * open_g * (1.0 + g * (1.0 - open_g))
                store_tile(dz, gl.where(real, dgate, 0.0), rows_here, t0, d0, dz_l, dz_d, stop, channels, Z_TILE)
            sums = gl.convert_layout(sums, SUMS, assert_trivial=True)
            column = gl.arange(0, 16, gl.SliceLayout(0, SUMS))[None, :]
            t = t0 + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))[:, None] * LENGTH + column // 2
            at = position(order, t, stop, length, WALK)
            gl.store(gl.where(column % 2 == 0, dB + at, dC + at), sums, mask=t < stop)
        t0 = t1
    here = ((batch * parts + part) * readings + reading) * state_size
    if ENDS:
        gl.store(leaving + here + d[None, :], dh, mask=on)
        gl.store(decays + here + d[None, :], alive, mask=on)
    else:
        if part == 0:
            gl.store(leaving + sequence * state_size + d[None, :], dh, mask=on)
        d = d0 + gl.arange(0, CHANNELS, gl.SliceLayout(0, SEGMENTS))
        gl.store(dA + here + d, gl.sum(dA_sum, axis=0), mask=d < channels)
        if HAS_D:
            gl.store(dD + here + d, gl.sum(dD_sum, axis=0), mask=d < channels)
        if HAS_BIAS:
            gl.store(dbias + here + d, gl.sum(dbias_sum, axis=0), mask=d < channels)
