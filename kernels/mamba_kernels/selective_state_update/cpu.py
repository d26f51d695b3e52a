"""One step of the selective scan on a CPU: lays the inputs out for the compiled kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.selective_state_update.cpu_kernels import Inputs, Plan, View, update
from mamba_kernels.selective_state_update.reference import check_indices, rates, with_heads
from mamba_kernels.simd import LANES
from mamba_kernels.threads import run_workers
from mamba_kernels.tiles import flat

# Numbers of state that are worth another task.
TASK_STATES = 65536


def _view(x: Tensor | None, dtype: torch.dtype, dims: int) -> View:
    """Return a tensor as the kernel takes it, a missing one as zeros everywhere."""
    if x is None:
        return View(flat(None, dtype), (0,) * dims)
    x = x.to(dtype)
    return View(flat(x), tuple(x.stride()))


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
) -> Tensor:
    """Advance ``state`` in place and return the output."""
    dtype = compute_dtype(state, x, dt, A, B, C)
    A = rates(A.to(dtype)) if A_is_log else A
    indices = None if state_batch_indices is None else state_batch_indices.long()
    if indices is not None:
        check_indices(indices, state.shape[0])
    pool, rows = state, indices
    if state.dtype != dtype:
        pool, rows = _in_dtype(state, indices, dtype)
    step = with_heads(pool, x, dt, A, B, C, D, z, dt_bias)
    batch, heads, width = step.x_BHP.shape
    size = step.A_HPN.shape[-1]
    blocks = batch * heads * -(-width // LANES)
    task_blocks = max(1, TASK_STATES // (LANES * size))
    plan = Plan(
        batch=batch,
        heads=heads,
        width=width,
        state=size,
        B_rows=heads * width // step.B_BGN.shape[1],
        C_rows=heads * width // step.C_BGN.shape[1],
        task_blocks=task_blocks,
        tasks=-(-blocks // task_blocks),
        softplus=int(dt_softplus),
        gated=int(z is not None),
        indexed=int(rows is not None),
    )
    y = empty_in_order(x, dtype)
    inputs = Inputs(
        state=_view(step.state_SHPN, dtype, 4),
        x=_view(step.x_BHP, dtype, 3),
        dt=_view(step.dt_BHP, dtype, 3),
        A=_view(step.A_HPN, dtype, 3),
        B=_view(step.B_BGN, dtype, 3),
        C=_view(step.C_BGN, dtype, 3),
        D=_view(step.D_HP, dtype, 2),
        z=_view(step.z_BHP, dtype, 3),
        bias=_view(step.dt_bias_HP, dtype, 2),
        indices=flat(None if rows is None else rows.contiguous(), torch.int64),
    )
    arguments = (np.zeros(1, np.int64), plan, inputs, _view(y if state.dim() == 4 else y[:, None], dtype, 3))
    run_workers(lambda: update(*arguments), plan.tasks)
    if pool is not state:
        _write_back(pool, state, indices)
    return y if y.dtype == x.dtype else empty_in_order(x).copy_(y)


def _in_dtype(state: Tensor, indices: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the states of the batch in the arithmetic's dtype, and which of them each entry advances."""
    if indices is None:
        return state.to(dtype), None
    chosen = state.index_select(0, indices.clamp(min=0)).to(dtype)
    return chosen, torch.where(indices < 0, -1, torch.arange(len(indices)))


def _write_back(pool: Tensor, state: Tensor, indices: Tensor | None) -> None:
    if indices is None:
        state.copy_(pool)
        return
    present = indices >= 0
    state[indices[present]] = pool[present].to(state.dtype)
