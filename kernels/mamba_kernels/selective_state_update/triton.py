"""One step of the selective scan on a GPU: hands the inputs to the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.gpu import ceil_divide, launch_grid, next_power_of_2, on_device_of_inputs, refuse_float64
from mamba_kernels.launch import Launch
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout
from mamba_kernels.selective_state_update.reference import check_indices, with_heads
from mamba_kernels.selective_state_update.triton_kernels import state_update

# Numbers of state a program takes: small, for a step has little work to spread over a GPU.
PROGRAM_STATES = 512


@per_layout
def _plan(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    indexed: bool,
    A_is_log: bool,
    dt_weight: Tensor | None,
    y: Tensor,
) -> Launch:
    refuse_float64("selective_state_update", state, x, dt, A, B, C, D, z, dt_bias, dt_weight)
    step = with_heads(state, x, dt, A, B, C, D, z, dt_bias)
    batch, heads, width = step.x_BHP.shape
    states = step.A_HPN.shape[-1]
    state_pad = next_power_of_2(states)
    rank = 1 if dt_weight is None else dt_weight.shape[1]
    block = max(1, min(PROGRAM_STATES // state_pad, next_power_of_2(width)))

    def strides(tensor: Tensor | None, dims: int) -> tuple[int, ...]:
        return (0,) * dims if tensor is None else tuple(tensor.stride())

    return Launch(
        state_update, launch_grid("selective_state_update", batch * heads * ceil_divide(width, block)),
        heads, width, states, rank, heads * width // step.B_BGN.shape[1], heads * width // step.C_BGN.shape[1],
        *step.state_SHPN.stride(), *step.x_BHP.stride(), *step.dt_BHP.stride(), *step.A_HPN.stride(),
        *step.B_BGN.stride(), *step.C_BGN.stride(), *strides(step.D_HP, 2), *strides(step.z_BHP, 3),
        *strides(step.dt_bias_HP, 2), *(y if y.dim() == 3 else y[:, None]).stride(), *strides(dt_weight, 2),
        SOFTPLUS=dt_softplus, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None,
        HAS_ROWS=indexed, LOG_RATES=A_is_log, LOW_RANK=dt_weight is not None, R_PAD=next_power_of_2(rank),
        BLOCK=block, N_PAD=state_pad, num_warps=1,
    )  # fmt: skip


@on_device_of_inputs
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    A_is_log: bool = False,
    dt_weight: Tensor | None = None,
) -> Tensor:
    """Advance ``state`` in place and return the output.

    Indices are checked but while a CUDA graph is captured, when their values cannot be known: the caller answers for
    those of a replay.
    """
    if state_batch_indices is not None and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        check_indices(state_batch_indices, state.shape[0])
    y = empty_in_order(x)
    indexed = state_batch_indices is not None
    plan = _plan(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, indexed, A_is_log, dt_weight, y)
    rows = x if state_batch_indices is None else state_batch_indices.contiguous()
    plan(state, x, dt, A, B, C, *(x if part is None else part for part in (D, z, dt_bias, dt_weight)), rows, y)
    return y
