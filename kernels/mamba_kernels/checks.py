"""Checks the operators' public functions share: each failure names the invariant, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require(condition: bool, message: str, remedy: str) -> None:
    """Raise KernelInputError unless ``condition`` holds."""
    if not condition:
        raise KernelInputError(message, remedy)


def require_float(op: str, name: str, x: Tensor) -> None:
    """Require a real floating point tensor."""
    if x.dtype not in FLOATS:
        raise KernelInputError(
            f"{op}: {name} must be a real floating point tensor, got {x.dtype}",
            f"convert {name}, for example with {name}.float()",
        )


def require_shape(op: str, name: str, x: Tensor, shape: Sequence[int], letters: str) -> None:
    """Require the exact ``shape``, written ``letters`` (such as "(B, D, L)") in the error."""
    if tuple(x.shape) != tuple(shape):
        raise KernelInputError(
            f"{op}: {name} must have shape {letters} = {tuple(shape)}, got {tuple(x.shape)}",
            f"reshape or slice {name}",
        )


def require_activation(op: str, activation: str | None) -> None:
    """Require what a convolution may apply to its output: nothing, or SiLU by one of its names."""
    if activation not in (None, "silu", "swish"):
        raise KernelInputError(
            f"{op}: activation must be None, 'silu' or 'swish', got {activation!r}",
            "apply any other activation to the output",
        )


def require_device(op: str, name: str, x: Tensor, device: torch.device) -> None:
    """Require ``x`` to be on ``device``."""
    if x.device != device:
        raise KernelInputError(
            f"{op}: {name} must be on {device} like the other inputs, got {x.device}",
            f"move it with {name}.to({str(device)!r})",
        )


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype the arithmetic is done in: float64 if any tensor is float64, else float32."""
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        return torch.float64
    return torch.float32


def cast_for_autocast(x: Tensor) -> Tensor:
    """Return ``x`` in autocast's dtype where autocast is on for its device and touches its dtype, else ``x`` itself."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))
