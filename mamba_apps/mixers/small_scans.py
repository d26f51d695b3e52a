"""Selective scans of Mamba-1 that come to less than a scan: over one token, and of one channel.

TimeMachine is made of both, with 256 states: written as scans they would move hundreds of times what they compute.

Dimensions in names: B batch, L length, E inner channels, N state.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels import selective_scan


def scan_one_token(
    u_BEL: Tensor,
    delta_BEL: Tensor,
    A_EN: Tensor,
    B_BNL: Tensor,
    C_BNL: Tensor,
    D_E: Tensor,
    z_BEL: Tensor,
    bias_E: Tensor,
) -> Tensor:
    """Return the gated output of a scan of length 1 that no state enters: nothing decays, and states need no memory.

    Args:
        u_BEL: Input (B, E, 1).
        delta_BEL: Step sizes (B, E, 1), before bias and softplus.
        A_EN: Decay rates; they are without effect, and get a gradient of 0.
        B_BNL: Input matrix (B, N, 1).
        C_BNL: Output matrix (B, N, 1).
        D_E: Skip weights.
        z_BEL: Gate (B, E, 1).
        bias_E: Bias of the step sizes.
    """
    u, delta, B, C, z = (x.to(bias_E.dtype) for x in (u_BEL, delta_BEL, B_BNL, C_BNL, z_BEL))
    dt_BEL = F.softplus(delta + bias_E[:, None])
    y_BEL = (dt_BEL * (B * C).sum(1, keepdim=True) + D_E[:, None]) * u * F.silu(z)
    # A sum of nothing: 0 whatever the rates are.
    return (y_BEL + A_EN[:0].sum()).to(u_BEL.dtype)


def scan_one_channel(
    u_BEL: Tensor,
    delta_BEL: Tensor,
    A_EN: Tensor,
    to_B_EN: Tensor,
    to_C_EN: Tensor,
    D_E: Tensor,
    z_BEL: Tensor,
    bias_E: Tensor,
    initial_state: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Return the gated output of a scan of one channel, and its last state.

    B and C are made of the channel by weights, so that each is that number times a constant vector: with B = u b and
    C = u c the output is u times that of a scan of u squared with b and c, and neither B nor C, N times as large as u,
    is ever written.

    Args:
        u_BEL: Input (B, 1, L).
        delta_BEL: Step sizes (B, 1, L), before bias and softplus.
        A_EN: Decay rates (1, N).
        to_B_EN: What B is, times u.
        to_C_EN: What C is, times u.
        D_E: Skip weights.
        z_BEL: Gate (B, 1, L).
        bias_E: Bias of the step sizes.
        initial_state: The state (B, 1, N) that enters, or None.
        backend: The scan's implementation to force.
    """
    u, z = (x.to(bias_E.dtype) for x in (u_BEL, z_BEL))
    # Squares would leave the range of 16 bits. PyTorch has no autocast where there are no numbers.
    with nullcontext() if u.is_meta else torch.autocast(u.device.type, enabled=False):
        scanned = selective_scan(
            u * u, delta_BEL, A_EN, to_B_EN, to_C_EN, None, None, bias_E, True, True, initial_state=initial_state,
            backend=backend,
        )  # fmt: skip
    y_BEL, last_state = cast(tuple[Tensor, Tensor], scanned)
    return ((y_BEL + D_E[:, None]) * u * F.silu(z)).to(u_BEL.dtype), last_state
