"""The parameters that state spaces share: how they start, and what a scan takes of them."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(parameter: Tensor) -> Tensor:
    """Return a parameter in at least float32: half-precision models keep decays and step sizes exact."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def decay_rates(A_log: Tensor) -> Tensor:
    """Return the rates of which logarithms are learned, in at least float32."""
    return -wide(A_log).exp()


def inverse_softplus(dt: Tensor) -> Tensor:
    """Return the bias that softplus makes into a step size above 0."""
    return dt + torch.log(-torch.expm1(-dt))


@torch.no_grad()
def start_as_s4d_real(A_log: Tensor) -> None:
    """Let state n of each channel (..., N) decay at rate n (S4D-real, arXiv 2206.11893)."""
    states_N = torch.arange(1, A_log.shape[-1] + 1, device=A_log.device, dtype=torch.float32)
    A_log.copy_(states_N.log().expand_as(A_log))
