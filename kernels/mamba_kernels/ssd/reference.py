"""SSD in plain PyTorch, one step after the other: the definition the fast paths are tested against.

Dimensions: B batch, L length, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.segments import segment_marks


def step_sizes(
    dt_BLH: Tensor, dt_bias_H: Tensor | None, softplus: bool, limit: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """Return what the recurrence steps by: biased, made positive, and only then kept within ``limit``."""
    dt_BLH = dt_BLH.to(dtype)
    if dt_bias_H is not None:
        dt_BLH = dt_BLH + dt_bias_H.to(dtype)
    if softplus:
        dt_BLH = F.softplus(dt_BLH, threshold=20.0)
    return dt_BLH.clamp(*limit)


def masked(x: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Return ``x`` (B, L, ...) with zeros where the mask is set, so that not even a NaN there reaches anything."""
    return x if mask_BL is None else x.masked_fill(mask_BL.view(*mask_BL.shape, *[1] * (x.dim() - 2)), 0.0)


def ssd_reference(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D: Tensor | None = None,
    z_BLHP: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states_BHPN: Tensor | None = None,
    seq_idx_BL: Tensor | None = None,
    reverse: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step; differentiable any number of times.

    The arguments are those of `ssd`, already checked; the result is the output and the final states.
    """
    order, out_dtype = x_BLHP, out_dtype or x_BLHP.dtype
    dtype = compute_dtype(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN)
    reset_BL = padding_BL = None
    if seq_idx_BL is not None:
        reset_BL, padding_BL = segment_marks(seq_idx_BL.flip(1) if reverse else seq_idx_BL)

    def reading(x: Tensor) -> Tensor:
        return masked((x.flip(1) if reverse else x).to(dtype), padding_BL)

    x_BLHP, dt_BLH, B_BLGN, C_BLGN = (reading(x) for x in (x_BLHP, dt_BLH, B_BLGN, C_BLGN))
    dt_BLH = step_sizes(dt_BLH, dt_bias_H, dt_softplus, dt_limit, dtype)
    heads = x_BLHP.shape[2]
    B_BLHN, C_BLHN = (M.repeat_interleave(heads // M.shape[2], dim=2) for M in (B_BLGN, C_BLGN))

    if initial_states_BHPN is None:
        state_BHPN = x_BLHP.new_zeros(x_BLHP.shape[0], *x_BLHP.shape[2:], B_BLHN.shape[-1])
    else:
        state_BHPN = initial_states_BHPN.to(dtype)
    y = []
    for t in range(x_BLHP.shape[1]):
        entering_BHPN = state_BHPN
        if reset_BL is not None:
            entering_BHPN = torch.where(reset_BL[:, t, None, None, None], 0.0, state_BHPN)
        decay_BH = torch.exp(dt_BLH[:, t] * A_H.to(dtype))
        input_BHP = dt_BLH[:, t, :, None] * x_BLHP[:, t]
        stepped_BHPN = decay_BH[..., None, None] * entering_BHPN + input_BHP[..., None] * B_BLHN[:, t, :, None]
        y.append((stepped_BHPN * C_BLHN[:, t, :, None]).sum(-1))
        state_BHPN = (
            stepped_BHPN
            if padding_BL is None
            else torch.where(padding_BL[:, t, None, None, None], state_BHPN, stepped_BHPN)
        )
    y_BLHP = torch.stack(y, dim=1)

    if D is not None:
        y_BLHP = y_BLHP + (D[:, None] if D.dim() == 1 else D).to(dtype) * x_BLHP
    if z_BLHP is not None:
        y_BLHP = y_BLHP * F.silu(reading(z_BLHP))
    y_BLHP = masked(y_BLHP, padding_BL)
    if reverse:
        y_BLHP = y_BLHP.flip(1)
    return in_order_of(y_BLHP.to(out_dtype), order), state_BHPN.clone()
