"""The forward scan with one state a channel, on a Hopper GPU.

A program takes 32 channels of one sequence, or of one part of it, and walks its time in tiles. All positions of a tile
are worked on at once: what each segment of it does to a state, then the states that enter the segments, then every
state; see `gluon_single_steps.py`.

Arguments and results are those of `triton_forward.scan_forward`, which runs on any GPU.
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
    tile_layout,
    tile_of,
)
from mamba_kernels.selective_scan.gluon_steps import (
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
def scan_forward(
    u, delta, A, B, C, D, z, bias, marks, order, checkpoints, out, entering, leaving, decays,
    channels, states, length, group_channels, B_share, C_share, part_length, parts, readings,
    marks_b, marks_k, u_b, u_k, u_d, u_l, delta_b, delta_k, delta_d, delta_l,
    B_b, B_k, B_g, B_n, B_l, C_b, C_k, C_g, C_n, C_l,
    z_b, z_k, z_d, z_l, out_b, out_k, out_d, out_l,
    STEPS: gl.constexpr,
    SOFTPLUS: gl.constexpr, WALK: gl.constexpr, HAS_D: gl.constexpr, HAS_Z: gl.constexpr, HAS_BIAS: gl.constexpr,
    HAS_MARKS: gl.constexpr, HAS_ENTERING: gl.constexpr, ENDS: gl.constexpr, SAVE: gl.constexpr,
    TIME_FAST: gl.constexpr, WIDE: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """Scan one part of one sequence for one block of channels."""
    LAYOUT: gl.constexpr = tile_layout(num_warps)
    SEGMENTS: gl.constexpr = segment_layout(num_warps)
    TIMES: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    EACH: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    U_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[0]), WIDE)
    DELTA_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[1]), WIDE)
    Z_TILE: gl.constexpr = (STEPS, CHANNELS, memory_layout(num_warps, TIME_FAST[4]), WIDE)
    TILE: gl.constexpr = (STEPS, CHANNELS, LAYOUT, WIDE)
    ROWS: gl.constexpr = STEPS // LENGTH
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])

    blocks = gl.cdiv(channels, CHANNELS)
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
    out += batch * out_b + reading * out_k

    Bs = gl.allocate_shared_memory(gl.float32, [STEPS], LINE)
    Cs = gl.allocate_shared_memory(gl.float32, [STEPS], LINE)
    passed = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)
    added = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], FLAT)

    h = gl.zeros([1, CHANNELS], gl.float32, SEGMENTS)
    if HAS_ENTERING:
        here = ((batch * parts + part) * readings + reading) * state_size
        h = gl.load(entering + here + d[None, :], mask=on, other=0.0)
    alive = gl.zeros([1, CHANNELS], gl.float32, SEGMENTS) + 1.0
    first = part * part_length
    stop = gl.minimum(first + part_length, length)

    rows = rows_of_tile(order, first, stop, length, WALK, TILE)
    next_rows = rows_of_tile(order, first + STEPS, stop, length, WALK, TILE)
    t = first + gl.arange(0, STEPS, EACH)
    row = position(order, t, stop, length, WALK)
    next_row = position(order, t + STEPS, stop, length, WALK)
    next_u = load_tile(u, rows, first, d0, u_l, u_d, stop, channels, U_TILE)
    next_delta = load_tile(delta, rows, first, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
    next_B = gl.load(B + offsets(row, B_l, TILE), mask=t < stop, other=0.0)
    if not ENDS:
        next_C = gl.load(C + offsets(row, C_l, TILE), mask=t < stop, other=0.0)
    for t0 in range(first, stop, STEPS):
        if SAVE:
            chunk = sequence * gl.cdiv(length, STEPS) + t0 // STEPS
            gl.store(checkpoints + chunk * state_size + d[None, :], h, mask=on)
        real = real_rows(marks, t0, stop, HAS_MARKS, TILE)
        Bs.store(next_B.to(gl.float32))
        x = gl.convert_layout(next_u, LAYOUT).to(gl.float32)
        dt = gl.convert_layout(next_delta, LAYOUT).to(gl.float32)
        if not ENDS:
            Cs.store(next_C.to(gl.float32))
            if HAS_Z:
                gate = load_tile(z, rows, t0, d0, z_l, z_d, stop, channels, Z_TILE)
        # The next tile's loads are in flight while this one is worked on.
        t1 = t0 + STEPS
        t = t1 + gl.arange(0, STEPS, EACH)
        next_u = load_tile(u, next_rows, t1, d0, u_l, u_d, stop, channels, U_TILE)
        next_delta = load_tile(delta, next_rows, t1, d0, delta_l, delta_d, stop, channels, DELTA_TILE)
        next_B = gl.load(B + offsets(next_row, B_l, TILE), mask=t < stop, other=0.0)
        if not ENDS:
            next_C = gl.load(C + offsets(next_row, C_l, TILE), mask=t < stop, other=0.0)
        rows_here = rows
        rows = next_rows
        next_rows = rows_of_tile(order, t1 + STEPS, stop, length, WALK, TILE)
        next_row = position(order, t + STEPS, stop, length, WALK)
        if HAS_BIAS:
            dt += bias_d[None, :]
        if SOFTPLUS:
            dt = softplus(dt)
        # A step of size 0 leaves the state as it is: padding, and positions past the end.
        dt = gl.where(real, dt, 0.0)
        if HAS_MARKS:
            x = gl.where(real, x, 0.0)
        a = exp2(dt * A2[None, :])
        B_t = Bs.load(TIMES)
        if HAS_MARKS:
            a = a * keep_of(marks, t0 + gl.arange(0, STEPS, TIMES), stop)[:, None]
            B_t = gl.where(real, B_t[:, None], 0.0)
        else:
            B_t = B_t[:, None]
        a_p = positions_of(a, SEGMENTS)
        b_p = positions_of(dt * x * B_t, SEGMENTS)
        decay = a_p[0]
        sum_p = b_p[0]
        for p in gl.static_range(1, LENGTH):
            sum_p = a_p[p] * sum_p + b_p[p]
            decay = decay * a_p[p]
        h_p, h = flow(decay, sum_p, h, passed, added, False, SEGMENTS)
        if ENDS:
            for i in gl.static_range(num_warps):
                alive = alive * passed.slice(2 * i + 1, 1, 0).load(SEGMENTS)
        else:
            hs = ()
            for p in gl.static_range(LENGTH):
                h_p = a_p[p] * h_p + b_p[p]
                hs = hs + (h_p,)
            C_t = Cs.load(TIMES)[:, None]
            if HAS_MARKS:
                C_t = gl.where(real, C_t, 0.0)
            y = tile_of(hs, LAYOUT) * C_t
            if HAS_D:
                y += skip_d[None, :] * x
            if HAS_Z:
                g = gl.convert_layout(gate, LAYOUT).to(gl.float32)
                y = y * g * sigmoid(g)
            if HAS_MARKS:
                y = gl.where(real, y, 0.0)
            store_tile(out, y, rows_here, t0, d0, out_l, out_d, stop, channels, U_TILE)
    here = ((batch * parts + part) * readings + reading) * state_size
    if ENDS:
        gl.store(leaving + here + d[None, :], h, mask=on)
        gl.store(decays + here + d[None, :], alive, mask=on)
    elif part == parts - 1:
        gl.store(leaving + sequence * state_size + d[None, :], h, mask=on)
