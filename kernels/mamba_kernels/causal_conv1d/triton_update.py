"""New positions convolved behind remembered ones, on a GPU: a program takes a block of channels of one sequence."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, next_power_of_2, on_device_of_inputs, refuse_float64
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.triton_math import sigmoid

BLOCK = 128


@triton.jit
def conv_update(
    x, state, weight, bias, seen, chosen, y, channels, new, columns,
    x_b, x_d, x_t, state_r, state_d, state_s, weight_d, weight_w, bias_d, y_b, y_d, y_t,
    WIDTH: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, RING: tl.constexpr, HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Write the outputs of ``new`` positions, then what is remembered, ``columns`` of it; KEPT covers the columns."""
    blocks = tl.cdiv(channels, BLOCK)
    d = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    on_d = d < channels
    row = batch
    if HAS_ROWS:
        row = tl.load(chosen + batch).to(tl.int64)
    present = row >= 0
    state += row * state_r + d * state_d
    x += batch * x_b + d * x_d
    y += batch * y_b + d * y_d
    # The first column of what was remembered last: a ring goes on where it was, other states end with it.
    end = columns
    if RING:
        end = tl.load(seen + batch).to(tl.int32)
    for t in range(new):
        out = tl.zeros([BLOCK], tl.float32)
        if HAS_BIAS:
            out += tl.load(bias + d * bias_d, mask=on_d, other=0.0).to(tl.float32)
        for w in tl.static_range(WIDTH):
            back = t + w - (WIDTH - 1)
            column = end + back
            if RING:
                column = (column % columns + columns) % columns
            remembered = tl.load(state + column * state_s, mask=on_d & present & (back < 0), other=0.0).to(tl.float32)
            arriving = tl.load(x + back * x_t, mask=on_d & (back >= 0), other=0.0).to(tl.float32)
            out += tl.load(weight + d * weight_d + w * weight_w, mask=on_d, other=0.0).to(tl.float32) * (
                remembered + arriving
            )
        if SILU:
            out = out * sigmoid(out)
        tl.store(y + t * y_t, tl.where(present, out, 0.0).to(y.dtype.element_ty), mask=on_d)
    s = tl.arange(0, KEPT)
    source = s + new - columns
    if RING:
        column = (end + source) % columns
        kept = (s < columns) & (source >= 0)
    else:
        column = s
        kept = s < columns
    inside = on_d[:, None] & kept[None, :] & present
    old = tl.load(state[:, None] + (s + new)[None, :] * state_s, mask=inside & (source < 0)[None, :], other=0.0)
    fresh = tl.load(x[:, None] + source[None, :] * x_t, mask=inside & (source >= 0)[None, :], other=0.0)
    # Nothing may be overwritten that another thread has still to read.
    tl.debug_barrier()
    memory = tl.where((source >= 0)[None, :], fresh.to(state.dtype.element_ty), old)
    tl.store(state[:, None] + column[None, :] * state_s, memory, mask=inside)


@per_layout
def _plan(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, ring: bool, indexed: bool, y: Tensor
) -> Launch:
    refuse_float64("causal_conv1d_update", x, state, weight, bias)
    batch, channels, columns = x.shape[0], x.shape[1], state.shape[2]
    new, x_t, y_t = (x.shape[2], x.stride(2), y.stride(2)) if x.dim() == 3 else (1, 0, 0)
    block = min(BLOCK, next_power_of_2(channels))
    return Launch(
        conv_update, launch_grid("causal_conv1d_update", batch * ceil_divide(channels, block)), channels, new, columns,
        x.stride(0), x.stride(1), x_t, *state.stride(), *weight.stride(), 0 if bias is None else bias.stride(0),
        y.stride(0), y.stride(1), y_t, WIDTH=weight.shape[1], SILU=silu, HAS_BIAS=bias is not None, RING=ring,
        HAS_ROWS=indexed, BLOCK=block, KEPT=next_power_of_2(max(1, columns)), num_warps=4,
    )  # fmt: skip


@on_device_of_inputs
def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """Advance the states in place and return the output; the arguments are checked."""
    y = empty_in_order(x)
    plan = _plan(x, conv_state, weight, bias, silu, cache_seqlens is not None, conv_state_indices is not None, y)
    optional = [x if part is None else part.contiguous() for part in (cache_seqlens, conv_state_indices)]
    plan(x, conv_state, weight, x if bias is None else bias, *optional, y)
    return y
