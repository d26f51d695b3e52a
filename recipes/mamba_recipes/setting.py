"""Where a command runs and on what, in the words of its header line."""

from __future__ import annotations

import os
from typing import Any


def device_words(accelerator: str = "auto") -> str:
    """Return the device, as Lightning would choose it, and the path the operators take on it.

    Args:
        accelerator: The trainer's ``accelerator``.
    """
    import torch

    from mamba_kernels.backend import VARIABLE

    forced = os.environ.get(VARIABLE, "auto")
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        path = "triton" if forced == "auto" else forced
        return f"{torch.cuda.get_device_name(0)}, {path} kernels"
    path = "cpu" if forced == "auto" else forced
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads != 1 else ''}), {path} kernels"


def data_words(data: Any) -> str:
    """Return what a data module says of itself, or its class's name."""
    describe = getattr(data, "describe", None)
    return str(describe()) if callable(describe) else type(data).__name__


def parameter_words(count: int) -> str:
    """Return a number of parameters as people write it: 812, 45.3k, 1.2M."""
    if count < 10_000:
        return f"{count:,} parameters"
    if count < 1_000_000:
        return f"{count / 1e3:.1f}k parameters"
    return f"{count / 1e6:.1f}M parameters"
