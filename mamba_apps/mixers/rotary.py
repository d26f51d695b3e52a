"""Rotary positions: pairs of channels of a query or key turn with its position, so that scores see distances only.

Follows RoFormer (Su et al., 2021), with the channel pairs (i, i + P/2). Dimensions in names: L length, P head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(start: int | Tensor, length: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine (L, P/2) of the angles at positions ``start`` to ``start + length - 1``.

    Args:
        start: The first position; in a tensor where only the device knows it.
        length: Number of positions.
        width: Channels of a head, even.
        base: The longest wavelength is ``2 pi base``.
        like: A tensor on the device wanted; the result has its dtype, or float32 where that is narrower.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    position_L = start + torch.arange(length, device=like.device, dtype=dtype)
    power_P = torch.arange(0, width, 2, device=like.device, dtype=dtype) / width
    angle_LP = position_L[:, None] * base**-power_P
    return angle_LP.cos(), angle_LP.sin()


def rotate(x: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Return ``x`` (..., L, P) with its channel pairs turned, in the dtype of ``x``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos_LP - second * sin_LP, second * cos_LP + first * sin_LP], dim=-1).to(x.dtype)
