"""One step of the selective scan in plain PyTorch: the definition the fast paths are tested against.

Dimensions: S sequences in the pool of states, B batch, H heads, P head width, N state, G groups. A state without heads
is one head whose width is the number of channels D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype, require
from mamba_kernels.layout import in_order_of


class Step(NamedTuple):
    """The inputs of a step, with heads."""

    state_SHPN: Tensor
    x_BHP: Tensor
    dt_BHP: Tensor
    A_HPN: Tensor
    B_BGN: Tensor
    C_BGN: Tensor
    D_HP: Tensor | None
    z_BHP: Tensor | None
    dt_bias_HP: Tensor | None


def with_heads(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> Step:
    """Return views of the inputs with the dimensions of heads and groups, where they lack them."""
    B, C = (M[:, None] if M.dim() == 2 else M for M in (B, C))
    if state.dim() == 4:
        return Step(state, x, dt, A, B, C, D, z, dt_bias)
    D, dt_bias = (None if v is None else v[None] for v in (D, dt_bias))
    z = None if z is None else z[:, None]
    return Step(state[:, None], x[:, None], dt[:, None], A[None], B, C, D, z, dt_bias)


def rates(A_log: Tensor) -> Tensor:
    """Return -exp(A_log), expanded where the input is."""
    tied = A_log
    for dim, stride in enumerate(A_log.stride()):
        if stride == 0:
            tied = tied.narrow(dim, 0, 1)
    return (-tied.exp()).expand_as(A_log)


def check_indices(indices: Tensor, pool: int) -> None:
    """Refuse indices outside the pool and states that two entries would advance."""
    present = indices[indices >= 0]
    require(
        present.numel() == 0 or int(present.max()) < pool,
        f"selective_state_update: state_batch_indices must be below the pool's {pool} states, got {indices.tolist()}",
        "give each entry the row of its state, or -1 for padding",
    )
    require(
        present.unique().numel() == present.numel(),
        f"selective_state_update: state_batch_indices must differ from each other, got {indices.tolist()}",
        "advance each state at most once a step",
    )


def selective_state_update_reference(
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
    """Advance ``state`` in place and return the output; the arguments are those of `selective_state_update`."""
    if state_batch_indices is not None and not torch.compiler.is_compiling():
        check_indices(state_batch_indices, state.shape[0])
    dtype = compute_dtype(state, x, dt, A, B, C)
    A = rates(A.to(dtype)) if A_is_log else A
    step = with_heads(state, x, dt, A, B, C, D, z, dt_bias)
    heads, width, _ = step.A_HPN.shape

    def per_row(M_BGN: Tensor) -> Tensor:
        rows = M_BGN.to(dtype).repeat_interleave(heads * width // M_BGN.shape[1], dim=1)
        return rows.view(-1, heads, width, rows.shape[-1])

    x_BHP, dt_BHP = step.x_BHP.to(dtype), step.dt_BHP.to(dtype)
    if step.dt_bias_HP is not None:
        dt_BHP = dt_BHP + step.dt_bias_HP.to(dtype)
    if dt_softplus:
        dt_BHP = F.softplus(dt_BHP, threshold=20.0)
    pool = step.state_SHPN
    rows_B = None if state_batch_indices is None else state_batch_indices.long().clamp(min=0)
    before_BHPN = (pool if rows_B is None else pool[rows_B]).to(dtype)
    decay_BHPN = torch.exp(dt_BHP[..., None] * step.A_HPN.to(dtype))
    after_BHPN = decay_BHPN * before_BHPN + (dt_BHP * x_BHP)[..., None] * per_row(step.B_BGN)
    y_BHP = (after_BHPN * per_row(step.C_BGN)).sum(-1)
    if step.D_HP is not None:
        y_BHP = y_BHP + step.D_HP.to(dtype) * x_BHP
    if step.z_BHP is not None:
        y_BHP = y_BHP * F.silu(step.z_BHP.to(dtype))
    if state_batch_indices is None:
        pool.copy_(after_BHPN)
    else:
        present_B = state_batch_indices >= 0
        pool[state_batch_indices[present_B].long()] = after_BHPN[present_B].to(pool.dtype)
        y_BHP = y_BHP.masked_fill(~present_B[:, None, None], 0.0)
    return in_order_of(y_BHP.reshape(x.shape).to(x.dtype), x)
