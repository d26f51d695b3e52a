"""The backward scan on a Hopper GPU, with layouts and shared memory chosen by hand.

Time is walked in tiles of ``STEPS`` positions from the end. A tile's states are found anew from the checkpoint before
it, every second one is kept in shared memory, and those between are found once more in registers on the way back.
Decayed states a*h(t-1) are computed, never obtained by subtraction. A channel's states are spread over ``LANES``
lanes of a warp, each lane holding ``DEEP`` channels: that keeps both sums short, over states for the gradients of u,
delta and z, and over channels for those of B and C. Sums over time stay in registers; sums over channels are taken in
one block and left to be added over blocks, without atomics. Inner loops take four positions at a time: unrolled
further, the code would outgrow the instruction cache, and at every store to shared memory the warps wait for each
other.

Arguments and results are those of `triton_backward.scan_backward`, which runs on any GPU.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mamba_kernels.selective_scan.gluon_steps import (
    LN2,
    LOG2E,
    exp2,
    fold,
    in_groups,
    keep_of,
    load_tile,
    position,
    read_layout,
    real_rows,
    rows_at_once,
    rows_of,
    rows_of_tile,
    sigmoid,
    softplus,
    store_tile,
    tile_layout,
)


@gluon.jit
def sum_over_states(x, LANES: gl.constexpr, DEEP: gl.constexpr):
    """Return the sums (channels,) over the states of x (N, channels), each lane that shares channels taking some."""
    N: gl.constexpr = x.shape[0]
    BLOCK: gl.constexpr = x.shape[1]
    FOLD: gl.constexpr = min(LANES, DEEP)
    x = gl.sum(x.reshape([LANES, N // LANES, BLOCK]), axis=1)
    if FOLD == 4:
        x = fold(x.reshape([LANES, BLOCK // 4, 2, 2]), 32 // LANES)
        x = fold(x, 64 // LANES)
    elif FOLD == 2:
        x = fold(x.reshape([LANES, BLOCK // DEEP, DEEP // 2, 2]), 32 // LANES)
    x = gl.sum(x.reshape([LANES // FOLD, FOLD, BLOCK // DEEP, DEEP // FOLD]), axis=0)
    return x.permute((1, 2, 0)).reshape([BLOCK])


@gluon.jit
def sums_over_channels(x, y, LANES: gl.constexpr, DEEP: gl.constexpr, WARPS: gl.constexpr):
    """Return the sums (WARPS, 2 * N) of x and of y (N, channels) over the channels of each warp."""
    N: gl.constexpr = x.shape[0]
    BLOCK: gl.constexpr = x.shape[1]
    ACROSS: gl.constexpr = 32 // LANES
    DOWN: gl.constexpr = N // LANES
    FOLD: gl.constexpr = min(DOWN, ACROSS // 2, 4)
    x = gl.sum(x.reshape([N, BLOCK // DEEP, DEEP]), axis=2)
    y = gl.sum(y.reshape([N, BLOCK // DEEP, DEEP]), axis=2)
    x = fold(gl.join(x, y), 1)
    x = x.reshape([LANES, DOWN // FOLD, FOLD, BLOCK // DEEP]).permute((0, 1, 3, 2))
    if FOLD == 4:
        x = fold(fold(x.reshape([LANES, DOWN // 4, BLOCK // DEEP, 2, 2]), 2), 4)
    elif FOLD == 2:
        x = fold(x, 2)
    x = gl.sum(x.reshape([LANES, DOWN // FOLD, WARPS, ACROSS // (2 * FOLD), FOLD, 2]), axis=3)
    return x.permute((2, 4, 0, 1, 3)).reshape([WARPS, 2 * N])


@gluon.jit
def sum_in_thread(x, ROWS: gl.constexpr):
    """Return a tile's sums over the rows that one thread holds."""
    return gl.sum(x.reshape([x.shape[0] // ROWS, ROWS, x.shape[1]]), axis=0)


@gluon.jit
def matrices_of(four):
    """Return four matrices (R, C) one below the other, as (4 * R, C)."""
    R: gl.constexpr = four[0].shape[0]
    C: gl.constexpr = four[0].shape[1]
    pairs = gl.join(gl.join(four[0], four[2]), gl.join(four[1], four[3]))
    return pairs.permute((2, 3, 0, 1)).reshape([4 * R, C])


@gluon.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, scratch, dout,
    du, ddelta, dA, dB, dC, dD, dz, dbias, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings, blocks,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l, z_b, z_k, z_d, z_l,
    dout_b, dout_k, dout_d, dout_l, du_b, du_k, du_d, du_l, ddelta_b, ddelta_k, ddelta_d, ddelta_l,
    dz_b, dz_k, dz_d, dz_l,
    N_PAD: gl.constexpr, LANES: gl.constexpr, DEEP: gl.constexpr, STEPS: gl.constexpr,
    SOFTPLUS: gl.constexpr, WALK: gl.constexpr, HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_MARKS: gl.constexpr, HAS_ENTERING: gl.constexpr, ENDS: gl.constexpr,
    TIME_FAST: gl.constexpr, WIDE: gl.constexpr, num_warps: gl.constexpr, ADD: gl.constexpr = False,
):  # fmt: skip
    """Walk one part of one sequence back for one block of channels."""
    BLOCK: gl.constexpr = 32 // LANES * DEEP * num_warps
    STATE: gl.constexpr = gl.BlockedLayout([N_PAD // LANES, DEEP], [LANES, 32 // LANES], [1, num_warps], [1, 0])
    LAYOUT: gl.constexpr = tile_layout(STEPS, BLOCK, num_warps)
    ROWS: gl.constexpr = rows_at_once(STEPS, BLOCK, num_warps)
    BC_LAYOUT: gl.constexpr = tile_layout(STEPS, N_PAD, num_warps)
    TILE: gl.constexpr = (STEPS, BLOCK, LAYOUT, WIDE)
    BC_TILE: gl.constexpr = (STEPS, N_PAD, BC_LAYOUT, WIDE)
    U_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[0]), WIDE)
    DELTA_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[1]), WIDE)
    B_TILE: gl.constexpr = (STEPS, N_PAD, read_layout(STEPS, N_PAD, num_warps, TIME_FAST[2]), WIDE)
    C_TILE: gl.constexpr = (STEPS, N_PAD, read_layout(STEPS, N_PAD, num_warps, TIME_FAST[3]), WIDE)
    Z_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[4]), WIDE)
    DOUT_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[5]), WIDE)
    WARPS: gl.constexpr = gl.BlockedLayout([num_warps, 1], [1, 32], [num_warps, 1], [1, 0])
    BOTH: gl.constexpr = tile_layout(STEPS, 2 * N_PAD, num_warps)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])

    block = gl.program_id(0) % blocks
    sequence = (gl.program_id(0) // blocks).to(gl.int64)
    batch = sequence // readings
    reading = sequence % readings
    part = gl.program_id(1)
    d0 = block * BLOCK
    d = d0 + gl.arange(0, BLOCK, gl.SliceLayout(0, STATE))
    n = gl.arange(0, N_PAD, gl.SliceLayout(1, STATE))
    on = (n < states)[:, None] & (d < channels)[None, :]
    state_at = n[:, None] + d[None, :].to(gl.int64) * states
    check_at = n[:, None].to(gl.int64) * channels + d[None, :]
    state_size = gl.to_tensor(states).to(gl.int64) * channels
    group = (d0 // group_channels).to(gl.int64)
    u += batch * u_b + reading * u_k
    delta += batch * delta_b + reading * delta_k
    dout += batch * dout_b + reading * dout_k
    B += batch * B_b + reading * B_k + (group // B_share) * B_g
    C += batch * C_b + reading * C_k + (group // C_share) * C_g
    marks += batch * marks_b + reading * marks_k
    order += reading * length
    A += reading * state_size
    D += reading * channels
    bias += reading * channels
    A2 = gl.load(A + state_at, mask=on, other=0.0) * LOG2E
    d_t = d0 + gl.arange(0, BLOCK, gl.SliceLayout(0, LAYOUT))
    if HAS_Z:
        z += batch * z_b + reading * z_k
    if HAS_BIAS:
        bias_d = gl.load(bias + d_t, mask=d_t < channels, other=0.0).to(gl.float32)
    if HAS_D:
        skip_d = gl.load(D + d_t, mask=d_t < channels, other=0.0).to(gl.float32)

    dts = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
    dys = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
    Cs = gl.allocate_shared_memory(gl.float32, [STEPS, N_PAD], FLAT)
    if not ENDS:
        du += batch * du_b + reading * du_k
        ddelta += batch * ddelta_b + reading * ddelta_k
        if HAS_Z:
            dz += batch * dz_b + reading * dz_k
        # Sums over this block's channels go to (B, blocks, L, N), added over blocks afterwards.
        dB += (sequence * blocks + block) * length * states
        dC += (sequence * blocks + block) * length * states
        dxs = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
        Bs = gl.allocate_shared_memory(gl.float32, [STEPS, N_PAD], FLAT)
        hs = gl.allocate_shared_memory(gl.float32, [STEPS // 4, 2 * N_PAD, BLOCK], FLAT)
        outs = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
        drives = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
        pulls = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
        dBCs = gl.allocate_shared_memory(gl.float32, [STEPS // 4, 4 * num_warps, 2 * N_PAD], FLAT)
        dD_sum = sum_in_thread(gl.zeros([STEPS, BLOCK], gl.float32, LAYOUT), ROWS)
        dbias_sum = dD_sum
        dA_sum = gl.zeros([N_PAD, BLOCK], gl.float32, STATE)

    dh = gl.zeros([N_PAD, BLOCK], gl.float32, STATE)
    if HAS_ENTERING:
        dh = gl.load(
            entering + ((batch * parts + part) * readings + reading) * state_size + state_at, mask=on, other=0.0
        )
    total = gl.zeros([1, BLOCK], gl.float32, STATE)
    alive = 1.0
    first = part * part_length
    stop = gl.minimum(first + part_length, length)
    tiles = gl.cdiv(stop - first, STEPS)

    t0 = first + (tiles - 1) * STEPS
    rows = rows_of_tile(order, t0, stop, length, WALK, TILE)
    rows_bc = rows_of_tile(order, t0, stop, length, WALK, BC_TILE)
    t1 = gl.maximum(t0 - STEPS, first)
    next_rows = rows_of_tile(order, t1, stop, length, WALK, TILE)
    next_rows_bc = rows_of_tile(order, t1, stop, length, WALK, BC_TILE)
    next_delta = load_tile(delta, rows, t0, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
    next_dout = load_tile(dout, rows, t0, d0, dout_l, dout_d, stop, channels, DOUT_TILE)
    next_C = load_tile(C, rows_bc, t0, 0, C_l, C_n, stop, states, C_TILE)
    if HAS_Z:
        next_z = load_tile(z, rows, t0, d0, z_l, z_d, stop, channels, Z_TILE)
    if not ENDS:
        next_u = load_tile(u, rows, t0, d0, u_l, u_d, stop, channels, U_TILE)
        next_B = load_tile(B, rows_bc, t0, 0, B_l, B_n, stop, states, B_TILE)
    for j in range(0, tiles):
        real = real_rows(marks, t0, stop, HAS_MARKS, TILE)
        real_bc = real_rows(marks, t0, stop, HAS_MARKS, BC_TILE)
        if not ENDS:
            chunk = sequence * gl.cdiv(length, STEPS) + t0 // STEPS
            h = gl.load(checkpoints + chunk * state_size + check_at, mask=on, other=0.0)
        raw = gl.convert_layout(next_delta, LAYOUT).to(gl.float32)
        dt = raw
        if HAS_BIAS:
            dt += bias_d[None, :]
        if SOFTPLUS:
            dt = softplus(dt)
        dt = gl.where(real, dt, 0.0)
        dts.store(dt)
        dy = gl.convert_layout(next_dout, LAYOUT).to(gl.float32)
        if HAS_Z:
            g = gl.convert_layout(next_z, LAYOUT).to(gl.float32)
            dy *= g * sigmoid(g)
        dys.store(gl.where(real, dy, 0.0))
        Cs.store(gl.where(real_bc, gl.convert_layout(next_C, BC_LAYOUT).to(gl.float32), 0.0))
        if not ENDS:
            x = gl.convert_layout(next_u, LAYOUT).to(gl.float32)
            dxs.store(gl.where(real, dt * x, 0.0))
            Bs.store(gl.where(real_bc, gl.convert_layout(next_B, BC_LAYOUT).to(gl.float32), 0.0))
        # The loads of the tile before are in flight while this one is walked.
        t1 = t0 - STEPS
        rows_here = rows
        if j < tiles - 1:
            next_delta = load_tile(delta, next_rows, t1, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
            next_dout = load_tile(dout, next_rows, t1, d0, dout_l, dout_d, stop, channels, DOUT_TILE)
            next_C = load_tile(C, next_rows_bc, t1, 0, C_l, C_n, stop, states, C_TILE)
            if HAS_Z:
                next_z = load_tile(z, next_rows, t1, d0, z_l, z_d, stop, channels, Z_TILE)
            if not ENDS:
                next_u = load_tile(u, next_rows, t1, d0, u_l, u_d, stop, channels, U_TILE)
                next_B = load_tile(B, next_rows_bc, t1, 0, B_l, B_n, stop, states, B_TILE)
            rows = next_rows
            t2 = gl.maximum(t1 - STEPS, first)
            next_rows = rows_of_tile(order, t2, stop, length, WALK, TILE)
            next_rows_bc = rows_of_tile(order, t2, stop, length, WALK, BC_TILE)
        if ENDS:
            for k in range(STEPS // 4):
                four = STEPS // 4 - 1 - k
                for i in gl.static_range(3, -1, -1):
                    dt_i = in_groups(dts).index(four).slice(i, 1, 0).load(STATE)
                    C_i = in_groups(Cs).index(four).slice(i, 1, 0).permute((1, 0)).load(STATE)
                    dh += C_i * in_groups(dys).index(four).slice(i, 1, 0).load(STATE)
                    dh = dh * exp2(dt_i * A2)
                    total += dt_i
                    if HAS_MARKS:
                        keep = keep_of(marks, t0 + four * 4 + i, stop)
                        dh = dh * keep
                        alive = alive * keep
        else:
            for four in range(STEPS // 4):
                for i in gl.static_range(4):
                    if i % 2 == 0:
                        hs.index(four).slice(i // 2 * N_PAD, N_PAD, 0).store(h)
                    a = exp2(in_groups(dts).index(four).slice(i, 1, 0).load(STATE) * A2)
                    if HAS_MARKS:
                        a = a * keep_of(marks, t0 + four * 4 + i, stop)
                    B_i = in_groups(Bs).index(four).slice(i, 1, 0).permute((1, 0)).load(STATE)
                    h = a * h + B_i * in_groups(dxs).index(four).slice(i, 1, 0).load(STATE)
            for k in range(STEPS // 4):
                four = STEPS // 4 - 1 - k
                ys = ()
                drives_i = ()
                pulls_i = ()
                dBCs_i = ()
                for i in gl.static_range(2, -1, -2):
                    h = hs.index(four).slice(i // 2 * N_PAD, N_PAD, 0).load(STATE)
                    a_i = ()
                    decayed = ()
                    h_i = ()
                    for m in gl.static_range(2):
                        a = exp2(in_groups(dts).index(four).slice(i + m, 1, 0).load(STATE) * A2)
                        if HAS_MARKS:
                            a = a * keep_of(marks, t0 + four * 4 + i + m, stop)
                        a_i = a_i + (a,)
                        h = a * h
                        decayed = decayed + (h,)
                        B_i = in_groups(Bs).index(four).slice(i + m, 1, 0).permute((1, 0)).load(STATE)
                        h += B_i * in_groups(dxs).index(four).slice(i + m, 1, 0).load(STATE)
                        h_i = h_i + (h,)
                    for m in gl.static_range(1, -1, -1):
                        dt_i = in_groups(dts).index(four).slice(i + m, 1, 0).load(STATE)
                        dx_i = in_groups(dxs).index(four).slice(i + m, 1, 0).load(STATE)
                        dy_i = in_groups(dys).index(four).slice(i + m, 1, 0).load(STATE)
                        B_i = in_groups(Bs).index(four).slice(i + m, 1, 0).permute((1, 0)).load(STATE)
                        C_i = in_groups(Cs).index(four).slice(i + m, 1, 0).permute((1, 0)).load(STATE)
                        if HAS_Z:
                            ys = (sum_over_states(h_i[m] * C_i, LANES, DEEP),) + ys
                        dh += C_i * dy_i
                        pull = dh * decayed[m]
                        dA_sum += pull * dt_i
                        pulls_i = (sum_over_states(pull * A2, LANES, DEEP),) + pulls_i
                        drives_i = (sum_over_states(dh * B_i, LANES, DEEP),) + drives_i
                        dBC_i = sums_over_channels(dh * dx_i, h_i[m] * dy_i, LANES, DEEP, num_warps)
                        dBCs_i = (dBC_i,) + dBCs_i
                        dh = dh * a_i[m]
                if HAS_Z:
                    in_groups(outs).index(four).store(rows_of(ys))
                in_groups(pulls).index(four).store(rows_of(pulls_i))
                in_groups(drives).index(four).store(rows_of(drives_i))
                dBCs.index(four).store(matrices_of(dBCs_i))
            # The inputs are read again (from the cache): kept, they would take the registers of the recurrence.
            x = load_tile(u, rows_here, t0, d0, u_l, u_d, stop, channels, U_TILE)
            x = gl.convert_layout(x, LAYOUT).to(gl.float32)
            raw = load_tile(delta, rows_here, t0, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
            raw = gl.convert_layout(raw, LAYOUT).to(gl.float32)
            if HAS_MARKS:
                x = gl.where(real, x, 0.0)
            dy = dys.load(LAYOUT)
            drive = drives.load(LAYOUT)
            dx = drive * dts.load(LAYOUT)
            ddt = pulls.load(LAYOUT) * LN2 + drive * x
            if HAS_D:
                dx += skip_d[None, :] * dy
                dD_sum += sum_in_thread(dy * x, ROWS)
            if SOFTPLUS:
                if HAS_BIAS:
                    raw += bias_d[None, :]
                ddt = ddt * sigmoid(raw)
            ddt = gl.where(real, ddt, 0.0)
            if HAS_BIAS:
                dbias_sum += sum_in_thread(ddt, ROWS)
            if HAS_MARKS:
                dx = gl.where(real, dx, 0.0)
            if ADD:
                before = load_tile(du, rows_here, t0, d0, du_l, du_d, stop, channels, U_TILE)
                dx += gl.convert_layout(before, LAYOUT)
                before = load_tile(ddelta, rows_here, t0, d0, ddelta_l, ddelta_d, stop, channels, DELTA_TILE)
                ddt += gl.convert_layout(before, LAYOUT)
            store_tile(du, dx, rows_here, t0, d0, du_l, du_d, stop, channels, U_TILE)
            store_tile(ddelta, ddt, rows_here, t0, d0, ddelta_l, ddelta_d, stop, channels, DELTA_TILE)
            if HAS_Z:
                y = outs.load(LAYOUT)
                if HAS_D:
                    y += skip_d[None, :] * x
                g = load_tile(z, rows_here, t0, d0, z_l, z_d, stop, channels, Z_TILE)
                g = gl.convert_layout(g, LAYOUT).to(gl.float32)
                dgate = load_tile(dout, rows_here, t0, d0, dout_l, dout_d, stop, channels, DOUT_TILE)
                dgate = gl.convert_layout(dgate, LAYOUT).to(gl.float32) * y
                open_g = sigmoid(g)
                dgate = gl.where(real, dgate * open_g * (1.0 + g * (1.0 - open_g)), 0.0)
                if ADD:
                    before = load_tile(dz, rows_here, t0, d0, dz_l, dz_d, stop, channels, Z_TILE)
                    dgate += gl.convert_layout(before, LAYOUT)
                store_tile(dz, dgate, rows_here, t0, d0, dz_l, dz_d, stop, channels, Z_TILE)
            dBC = dBCs._reinterpret(gl.float32, [STEPS * num_warps, 2 * N_PAD], FLAT).load(WARPS)
            dBC = gl.convert_layout(gl.sum(dBC.reshape([STEPS, num_warps, 2 * N_PAD]), axis=1), BOTH)
            t = t0 + gl.arange(0, STEPS, gl.SliceLayout(1, BOTH))
            n2 = gl.arange(0, 2 * N_PAD, gl.SliceLayout(0, BOTH))
            row = position(order, t, stop, length, WALK)
            at = row.to(gl.int64)[:, None] * states + (n2 % N_PAD)[None, :]
            target = gl.where((n2 < N_PAD)[None, :], dB + at, dC + at)
            gl.store(target, dBC, mask=(t < stop)[:, None] & (n2 % N_PAD < states)[None, :])
        t0 = t1
    here = ((batch * parts + part) * readings + reading) * state_size
    if ENDS:
        gl.store(leaving + here + state_at, dh, mask=on)
        gl.store(decays + here + state_at, exp2(total * A2) * alive, mask=on)
    else:
        if part == 0:
            gl.store(leaving + sequence * state_size + state_at, dh, mask=on)
        gl.store(dA + here + state_at, dA_sum, mask=on)
        here = ((batch * parts + part) * readings + reading) * channels
        if HAS_D:
            dD_d = gl.convert_layout(gl.sum(dD_sum, axis=0), gl.SliceLayout(0, STATE))
            gl.store(dD + here + d, dD_d, mask=d < channels)
        if HAS_BIAS:
            dbias_d = gl.convert_layout(gl.sum(dbias_sum, axis=0), gl.SliceLayout(0, STATE))
            gl.store(dbias + here + d, dbias_d, mask=d < channels)
