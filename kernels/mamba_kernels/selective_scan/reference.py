"""The selective scan in plain PyTorch, one step after the other: the definition the fast paths are tested against.

Dimensions: B batch, D channels, L length, N state, G groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.segments import segment_marks


def per_channel(M: Tensor, channels: int) -> Tensor:
    """Return B or C of any of the three shapes as (B or 1, D, N, L or 1)."""
    if M.dim() == 2:
        return M[None, :, :, None]
    if M.dim() == 3:
        return M[:, None].expand(-1, channels, -1, -1)
    return M.repeat_interleave(channels // M.shape[1], dim=1)


def selective_scan_reference(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B: Tensor,
    C: Tensor,
    D_D: Tensor | None = None,
    z_BDL: Tensor | None = None,
    delta_bias_D: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state_BDN: Tensor | None = None,
    seq_idx_BL: Tensor | None = None,
    reverse: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the scan's recurrence step by step; differentiable any number of times.

    The arguments are those of `selective_scan`, already checked; the result is the output and the last state.
    """
    order, out_dtype = u_BDL, out_dtype or u_BDL.dtype
    dtype = compute_dtype(u_BDL, delta_BDL, A_DN, B, C)
    u_BDL, delta_BDL, A_DN, B, C = (x.to(dtype) for x in (u_BDL, delta_BDL, A_DN, B, C))
    z_BDL = None if z_BDL is None else z_BDL.to(dtype)
    length = u_BDL.shape[2]

    if reverse:
        u_BDL, delta_BDL = u_BDL.flip(2), delta_BDL.flip(2)
        B, C = (M.flip(-1) if M.dim() > 2 else M for M in (B, C))
        z_BDL = None if z_BDL is None else z_BDL.flip(2)
        seq_idx_BL = None if seq_idx_BL is None else seq_idx_BL.flip(1)
    reset_BL = padding_BL = None
    if seq_idx_BL is not None:
        reset_BL, padding_BL = segment_marks(seq_idx_BL)
        # Whatever stands in the padding, even NaN, reaches neither the result nor a gradient.
        u_BDL, delta_BDL = (x.masked_fill(padding_BL[:, None], 0.0) for x in (u_BDL, delta_BDL))
        z_BDL = None if z_BDL is None else z_BDL.masked_fill(padding_BL[:, None], 0.0)
        B, C = (
            M.masked_fill(padding_BL.view(-1, *[1] * (M.dim() - 2), length), 0.0) if M.dim() > 2 else M for M in (B, C)
        )

    dt_BDL = delta_BDL if delta_bias_D is None else delta_BDL + delta_bias_D.to(dtype)[:, None]
    if delta_softplus:
        dt_BDL = F.softplus(dt_BDL, threshold=20.0)
    B, C = (per_channel(M, u_BDL.shape[1]) for M in (B, C))

    if initial_state_BDN is None:
        state_BDN = u_BDL.new_zeros(*u_BDL.shape[:2], A_DN.shape[1])
    else:
        state_BDN = initial_state_BDN.to(dtype)
    y = []
    for t in range(length):
        entering_BDN = state_BDN
        if reset_BL is not None:
            entering_BDN = torch.where(reset_BL[:, t, None, None], 0.0, state_BDN)
        decay_BDN = torch.exp(dt_BDL[:, :, t, None] * A_DN)
        input_BDN = (dt_BDL[:, :, t] * u_BDL[:, :, t])[..., None] * B[..., t % B.shape[-1]]
        stepped_BDN = decay_BDN * entering_BDN + input_BDN
        y.append((stepped_BDN * C[..., t % C.shape[-1]]).sum(-1))
        state_BDN = (
            stepped_BDN if padding_BL is None else torch.where(padding_BL[:, t, None, None], state_BDN, stepped_BDN)
        )
    y_BDL = torch.stack(y, dim=-1)

    if D_D is not None:
        y_BDL = y_BDL + D_D.to(dtype)[:, None] * u_BDL
    if z_BDL is not None:
        y_BDL = y_BDL * F.silu(z_BDL)
    if padding_BL is not None:
        y_BDL = y_BDL.masked_fill(padding_BL[:, None], 0.0)
    if reverse:
        y_BDL = y_BDL.flip(2)
    return in_order_of(y_BDL.to(out_dtype), order), state_BDN.clone()
