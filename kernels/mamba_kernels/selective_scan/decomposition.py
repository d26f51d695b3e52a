"""The selective scan in a number of PyTorch's own operations that grows with the logarithm of the length.

For exporters: `selective_scan_reference` would unroll every step. Uses the associativity of (a, x) then (b, y) =
(a b, b x + y), doubling the reach of each position's sum, without dividing by a decay.

Dimensions: B batch, D channels, N state, L length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import in_order_of
from mamba_kernels.segments import segment_marks
from mamba_kernels.selective_scan.reference import per_channel
from mamba_kernels.selective_scan.registered import checkpoint_shape, registered_scan


def _scan(decay_BDNL: Tensor, input_BDNL: Tensor) -> Tensor:
    """Return the states h_t = decay_t h_{t-1} + input_t, from zero."""
    reach = 1
    while reach < input_BDNL.shape[-1]:
        carried_BDNL = input_BDNL[..., reach:] + decay_BDNL[..., reach:] * input_BDNL[..., :-reach]
        input_BDNL = torch.cat((input_BDNL[..., :reach], carried_BDNL), dim=-1)
        joined_BDNL = decay_BDNL[..., reach:] * decay_BDNL[..., :-reach]
        decay_BDNL = torch.cat((decay_BDNL[..., :reach], joined_BDNL), dim=-1)
        reach *= 2
    return input_BDNL


@register_decomposition(registered_scan)
def selective_scan_decomposition(
    u_BDL: Tensor,
    delta_BDL: Tensor,
    A_DN: Tensor,
    B: Tensor,
    C: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    delta_bias_D: Tensor | None,
    delta_softplus: bool,
    initial_state_BDN: Tensor | None,
    seq_idx_BL: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the registered operator returns; what it would save for a backward pass is zeros."""
    checkpoints = u_BDL.new_zeros(checkpoint_shape(u_BDL, A_DN, B, C) if save else (0,))
    order, dtype = u_BDL, compute_dtype(u_BDL, delta_BDL, A_DN, B, C)
    u_BDL, delta_BDL, A_DN = (x.to(dtype) for x in (u_BDL, delta_BDL, A_DN))
    B, C = (per_channel(M.to(dtype), u_BDL.shape[1]) for M in (B, C))

    dt_BDL = delta_BDL if delta_bias_D is None else delta_BDL + delta_bias_D.to(dtype)[:, None]
    if delta_softplus:
        dt_BDL = F.softplus(dt_BDL, threshold=20.0)
    decay_BDNL = torch.exp(dt_BDL[:, :, None] * A_DN[..., None])
    input_BDNL = (dt_BDL * u_BDL)[:, :, None] * B
    if reverse:
        decay_BDNL, input_BDNL = decay_BDNL.flip(3), input_BDNL.flip(3)
    padding_BL = None
    if seq_idx_BL is not None:
        reset_BL, padding_BL = segment_marks(seq_idx_BL.flip(1) if reverse else seq_idx_BL)
        decay_BDNL = decay_BDNL.masked_fill(reset_BL[:, None, None], 0.0).masked_fill(padding_BL[:, None, None], 1.0)
        input_BDNL = input_BDNL.masked_fill(padding_BL[:, None, None], 0.0)
    if initial_state_BDN is not None:
        first_BDN1 = input_BDNL[..., :1] + decay_BDNL[..., :1] * initial_state_BDN.to(dtype)[..., None]
        input_BDNL = torch.cat((first_BDN1, input_BDNL[..., 1:]), dim=-1)
    state_BDNL = _scan(decay_BDNL, input_BDNL)
    last_state_BDN = state_BDNL[..., -1].contiguous()
    if reverse:
        state_BDNL = state_BDNL.flip(3)
        padding_BL = None if padding_BL is None else padding_BL.flip(1)

    y_BDL = (state_BDNL * C).sum(2)
    if D_D is not None:
        y_BDL = y_BDL + D_D.to(dtype)[:, None] * u_BDL
    if z_BDL is not None:
        y_BDL = y_BDL * F.silu(z_BDL.to(dtype))
    if padding_BL is not None:
        y_BDL = y_BDL.masked_fill(padding_BL[:, None], 0.0)
    return in_order_of(y_BDL.to(out_dtype), order), last_state_BDN, checkpoints.to(dtype)
