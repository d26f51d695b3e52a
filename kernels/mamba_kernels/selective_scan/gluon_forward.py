"""The forward scan on a Hopper GPU, with layouts and shared memory chosen by hand.

A program takes a block of channels of one sequence, or of one part of it, and walks its time in tiles of ``STEPS``
positions. A tile is read as wide rows and turned into step sizes, inputs, B and C once, in shared memory; then the
recurrence runs through it with ``LANES`` lanes sharing a channel's states; then the outputs leave as wide rows.

Arguments and results are those of `triton_forward.scan_forward`, which runs on any GPU.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mamba_kernels.selective_scan.gluon_steps import (
    LOG2E,
    exp2,
    in_groups,
    keep_of,
    load_tile,
    read_layout,
    real_rows,
    rows_of,
    rows_of_tile,
    sigmoid,
    softplus,
    store_tile,
    tile_layout,
)


@gluon.jit
def scan_forward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, out, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l,
    z_b, z_k, z_d, z_l, out_b, out_k, out_d, out_l,
    N_PAD: gl.constexpr, LANES: gl.constexpr, STEPS: gl.constexpr,
    SOFTPLUS: gl.constexpr, WALK: gl.constexpr, HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_MARKS: gl.constexpr, HAS_ENTERING: gl.constexpr, ENDS: gl.constexpr, SAVE: gl.constexpr,
    TIME_FAST: gl.constexpr, WIDE: gl.constexpr, num_warps: gl.constexpr, ADD: gl.constexpr = False,
):  # fmt: skip
    """Scan one part of one sequence for one block of channels."""
    BLOCK: gl.constexpr = 32 // LANES * num_warps
    STATE: gl.constexpr = gl.BlockedLayout([N_PAD // LANES, 1], [LANES, 32 // LANES], [1, num_warps], [1, 0])
    LAYOUT: gl.constexpr = tile_layout(STEPS, BLOCK, num_warps)
    BC_LAYOUT: gl.constexpr = tile_layout(STEPS, N_PAD, num_warps)
    TILE: gl.constexpr = (STEPS, BLOCK, LAYOUT, WIDE)
    BC_TILE: gl.constexpr = (STEPS, N_PAD, BC_LAYOUT, WIDE)
    U_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[0]), WIDE)
    DELTA_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[1]), WIDE)
    B_TILE: gl.constexpr = (STEPS, N_PAD, read_layout(STEPS, N_PAD, num_warps, TIME_FAST[2]), WIDE)
    C_TILE: gl.constexpr = (STEPS, N_PAD, read_layout(STEPS, N_PAD, num_warps, TIME_FAST[3]), WIDE)
    Z_TILE: gl.constexpr = (STEPS, BLOCK, read_layout(STEPS, BLOCK, num_warps, TIME_FAST[4]), WIDE)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])

    blocks = gl.cdiv(channels, BLOCK)
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
    dxs = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)
    Bs = gl.allocate_shared_memory(gl.float32, [STEPS, N_PAD], FLAT)
    if not ENDS:
        out += batch * out_b + reading * out_k
        Cs = gl.allocate_shared_memory(gl.float32, [STEPS, N_PAD], FLAT)
        outs = gl.allocate_shared_memory(gl.float32, [STEPS, BLOCK], FLAT)

    h = gl.zeros([N_PAD, BLOCK], gl.float32, STATE)
    if HAS_ENTERING:
        h = gl.load(
            entering + ((batch * parts + part) * readings + reading) * state_size + state_at, mask=on, other=0.0
        )
    total = gl.zeros([1, BLOCK], gl.float32, STATE)
    alive = 1.0
    first = part * part_length
    stop = gl.minimum(first + part_length, length)

    rows = rows_of_tile(order, first, stop, length, WALK, TILE)
    rows_bc = rows_of_tile(order, first, stop, length, WALK, BC_TILE)
    next_rows = rows_of_tile(order, first + STEPS, stop, length, WALK, TILE)
    next_rows_bc = rows_of_tile(order, first + STEPS, stop, length, WALK, BC_TILE)
    next_u = load_tile(u, rows, first, d0, u_l, u_d, stop, channels, U_TILE)
    next_delta = load_tile(delta, rows, first, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
    next_B = load_tile(B, rows_bc, first, 0, B_l, B_n, stop, states, B_TILE)
    if not ENDS:
        next_C = load_tile(C, rows_bc, first, 0, C_l, C_n, stop, states, C_TILE)
    for t0 in range(first, stop, STEPS):
        if SAVE:
            chunk = sequence * gl.cdiv(length, STEPS) + t0 // STEPS
            gl.store(checkpoints + chunk * state_size + check_at, h, mask=on)
        real = real_rows(marks, t0, stop, HAS_MARKS, TILE)
        real_bc = real_rows(marks, t0, stop, HAS_MARKS, BC_TILE)
        x = gl.convert_layout(next_u, LAYOUT).to(gl.float32)
        dt = gl.convert_layout(next_delta, LAYOUT).to(gl.float32)
        if HAS_BIAS:
            dt += bias_d[None, :]
        if SOFTPLUS:
            dt = softplus(dt)
        # A step of size 0 leaves the state as it is: padding, and positions past the end.
        dt = gl.where(real, dt, 0.0)
        if HAS_MARKS:
            x = gl.where(real, x, 0.0)
        dts.store(dt)
        dxs.store(dt * x)
        Bs.store(gl.where(real_bc, gl.convert_layout(next_B, BC_LAYOUT).to(gl.float32), 0.0))
        if not ENDS:
            Cs.store(gl.where(real_bc, gl.convert_layout(next_C, BC_LAYOUT).to(gl.float32), 0.0))
            if HAS_Z:
                gate = load_tile(z, rows, t0, d0, z_l, z_d, stop, channels, Z_TILE)
            if ADD:
                before = load_tile(out, rows, t0, d0, out_l, out_d, stop, channels, U_TILE)
        # The next tile's loads are in flight while this one is walked.
        t1 = t0 + STEPS
        next_u = load_tile(u, next_rows, t1, d0, u_l, u_d, stop, channels, U_TILE)
        next_delta = load_tile(delta, next_rows, t1, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
        next_B = load_tile(B, next_rows_bc, t1, 0, B_l, B_n, stop, states, B_TILE)
        if not ENDS:
            next_C = load_tile(C, next_rows_bc, t1, 0, C_l, C_n, stop, states, C_TILE)
        rows_here = rows
        rows = next_rows
        next_rows = rows_of_tile(order, t1 + STEPS, stop, length, WALK, TILE)
        next_rows_bc = rows_of_tile(order, t1 + STEPS, stop, length, WALK, BC_TILE)
        for four in range(STEPS // 4):
            ys = ()
            for i in gl.static_range(4):
                dt_i = in_groups(dts).index(four).slice(i, 1, 0).load(STATE)
                dx_i = in_groups(dxs).index(four).slice(i, 1, 0).load(STATE)
                B_i = in_groups(Bs).index(four).slice(i, 1, 0).permute((1, 0)).load(STATE)
                a = exp2(dt_i * A2)
                if HAS_MARKS:
                    keep = keep_of(marks, t0 + four * 4 + i, stop)
                    a = a * keep
                    if ENDS:
                        alive = alive * keep
                h = a * h + B_i * dx_i
                if ENDS:
                    total += dt_i
                else:
                    C_i = in_groups(Cs).index(four).slice(i, 1, 0).permute((1, 0)).load(STATE)
                    ys = ys + (gl.sum(h * C_i, axis=0),)
            if not ENDS:
                in_groups(outs).index(four).store(rows_of(ys))
        if not ENDS:
            y = outs.load(LAYOUT)
            if HAS_D:
                y += skip_d[None, :] * x
            if HAS_Z:
                g = gl.convert_layout(gate, LAYOUT).to(gl.float32)
                y = y * g * sigmoid(g)
            if HAS_MARKS:
                y = gl.where(real, y, 0.0)
            if ADD:
                y += gl.convert_layout(before, LAYOUT)
            store_tile(out, y, rows_here, t0, d0, out_l, out_d, stop, channels, U_TILE)
    here = ((batch * parts + part) * readings + reading) * state_size
    if ENDS:
        gl.store(leaving + here + state_at, h, mask=on)
        gl.store(decays + here + state_at, exp2(total * A2) * alive, mask=on)
    elif part == parts - 1:
        gl.store(leaving + sequence * state_size + state_at, h, mask=on)
