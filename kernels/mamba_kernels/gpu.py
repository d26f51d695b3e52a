"""What the operators' GPU launchers share; importable without Triton and without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError


def ceil_divide(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """Return the number of the GPU's multiprocessors; 1 where kernels are interpreted on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def refuse_float64(op: str, *tensors: Tensor | None) -> None:
    """Raise KernelInputError if a tensor is float64: the GPU kernels compute in float32."""
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        raise KernelInputError(
            f"{op}: the GPU kernel computes in float32, and an input is float64",
            "convert the inputs to float32, or pass backend='reference'",
        )
