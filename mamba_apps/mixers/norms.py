"""Norms that add the residual first, as modules over the fused operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_kernels import gated_rms_norm, layer_norm, rms_norm


class _Norm(nn.Module):
    operator: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        bias: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.backend = backend
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Normalise the last dimension of ``x``; the result has the dtype ``out_dtype``, or that of ``x``."""
        return self.operator(x, self.weight, self.bias, eps=self.eps, out_dtype=out_dtype, backend=self.backend)

    def add(self, x: Tensor, residual: Tensor | None, residual_in_fp32: bool = False) -> tuple[Tensor, Tensor]:
        """Add ``residual`` to ``x`` where there is one, and normalise the sum.

        Args:
            x: The tensor; the result has its dtype.
            residual: What is added to it, of the same shape.
            residual_in_fp32: Whether the sum is kept in float32, whatever the dtype of ``x``.

        Returns:
            The normalised sum, and the sum.
        """
        return self.operator(
            x,
            self.weight,
            self.bias,
            residual=residual,
            eps=self.eps,
            prenorm=True,
            residual_in_fp32=residual_in_fp32,
            backend=self.backend,
        )


class RMSNorm(_Norm):
    """Divide by the root mean square of the last dimension, and scale.

    Args:
        width: Size of that dimension.
        eps: Added to the mean square.
        bias: Whether there is a bias too.
        backend: The operator's implementation to force; None lets it choose.
        device: Where the parameters live.
        dtype: Of the parameters.
    """

    operator = staticmethod(rms_norm)


class LayerNorm(_Norm):
    """Standardise the last dimension, scale and shift; the arguments are RMSNorm's, with the bias on."""

    operator = staticmethod(layer_norm)

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, **options: Any) -> None:
        super().__init__(width, eps, bias, **options)


class GatedRMSNorm(nn.Module):
    """Divide each group of channels by its root mean square, scale, and gate: Mamba-2's norm.

    Args:
        width: Channels.
        eps: Added to the mean square.
        groups: Groups of channels, a divisor of ``width``.
        norm_before_gate: Whether the norm comes before the gate.
        backend: The operator's implementation to force; None lets it choose.
        device: Where the parameters live.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        groups: int = 1,
        norm_before_gate: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.group_size = width // groups
        self.norm_before_gate = norm_before_gate
        self.backend = backend
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Normalise ``x`` (..., width), gated by silu(z)."""
        return gated_rms_norm(
            x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate, backend=self.backend
        )


def linear_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives linear layers, else None: a norm that writes it saves the conversion."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def create_norm(
    name: Literal["rms", "layer"], width: int, eps: float = 1e-5, backend: str | None = None
) -> RMSNorm | LayerNorm:
    """Build the norm a configuration names.

    Raises:
        UserError: If the name is neither "rms" nor "layer".
    """
    if name == "rms":
        return RMSNorm(width, eps, backend=backend)
    if name == "layer":
        return LayerNorm(width, eps, backend=backend)
    raise UserError(f"unknown norm {name!r}", "choose rms or layer")
