"""One step of the selective scan on a GPU: a program takes channels of a head of a sequence, with all their states."""

from __future__ import annotations

import triton
import triton.language as tl

from mamba_kernels.triton_math import LOG2E, exp2, sigmoid, softplus


@triton.jit
def state_update(
    state, x, dt, A, B, C, D, z, bias, dt_weight, chosen, y,
    heads, width, states, rank, B_rows, C_rows,
    state_s, state_h, state_p, state_n, x_b, x_h, x_p, dt_b, dt_h, dt_p, A_h, A_p, A_n, B_b, B_g, B_n, C_b, C_g, C_n,
    D_h, D_p, z_b, z_h, z_p, bias_h, bias_p, y_b, y_h, y_p, weight_p, weight_r,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ROWS: tl.constexpr,
    LOG_RATES: tl.constexpr, LOW_RANK: tl.constexpr, R_PAD: tl.constexpr, BLOCK: tl.constexpr, N_PAD: tl.constexpr,
):  # fmt: skip
    """Advance the states and write the output; see `triton.py` for the arguments."""
    blocks = tl.cdiv(width, BLOCK)
    p = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    h = tl.program_id(0) // blocks % heads
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    n = tl.arange(0, N_PAD)
    on_p = p < width
    on = on_p[:, None] & (n < states)[None, :]
    row = batch
    if HAS_ROWS:
        row = tl.load(chosen + batch).to(tl.int64)
    present = row >= 0
    channel = h * width + p
    if LOW_RANK:
        r = tl.arange(0, R_PAD)
        factor = tl.load(dt + batch * dt_b + r * dt_p, mask=r < rank, other=0.0).to(tl.float32)
        place = dt_weight + p[:, None] * weight_p + r[None, :] * weight_r
        weight = tl.load(place, mask=on_p[:, None] & (r < rank)[None, :], other=0.0).to(tl.float32)
        step = tl.sum(weight * factor[None, :], axis=1)
    else:
        step = tl.load(dt + batch * dt_b + h * dt_h + p * dt_p, mask=on_p, other=0.0).to(tl.float32)
    if HAS_BIAS:
        step += tl.load(bias + h * bias_h + p * bias_p, mask=on_p, other=0.0).to(tl.float32)
    if SOFTPLUS:
        step = softplus(step)
    u = tl.load(x + batch * x_b + h * x_h + p * x_p, mask=on_p, other=0.0).to(tl.float32)
    rates = tl.load(A + h * A_h + p[:, None] * A_p + n[None, :] * A_n, mask=on, other=0.0).to(tl.float32)
    if LOG_RATES:
        rates = -exp2(rates * LOG2E)
    at = batch * B_b + (channel // B_rows)[:, None] * B_g + n[None, :] * B_n
    drive = tl.load(B + at, mask=on, other=0.0).to(tl.float32)
    at = batch * C_b + (channel // C_rows)[:, None] * C_g + n[None, :] * C_n
    read = tl.load(C + at, mask=on, other=0.0).to(tl.float32)
    place = state + row * state_s + h * state_h + p[:, None].to(tl.int64) * state_p + n[None, :] * state_n
    before = tl.load(place, mask=on & present, other=0.0).to(tl.float32)
    after = exp2(step[:, None] * (rates * LOG2E)) * before + (step * u)[:, None] * drive
    tl.store(place, after.to(state.dtype.element_ty), mask=on & present)
    out = tl.sum(after * read, axis=1)
    if HAS_D:
        out += tl.load(D + h * D_h + p * D_p, mask=on_p, other=0.0).to(tl.float32) * u
    if HAS_Z:
        gate = tl.load(z + batch * z_b + h * z_h + p * z_p, mask=on_p, other=0.0).to(tl.float32)
        out = out * gate * sigmoid(gate)
    out = tl.where(present, out, 0.0)
    tl.store(y + batch * y_b + h * y_h + p * y_p, out.to(y.dtype.element_ty), mask=on_p)
