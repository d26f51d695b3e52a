"""The device that an accelerator's name stands for."""

from __future__ import annotations

import torch

from mamba_apps.errors import UserError


def device_for(accelerator: str) -> torch.device:
    """Return where forecasts are computed.

    Args:
        accelerator: "auto" (a GPU where there is one), "cpu", "gpu", "cuda" or "mps", as Lightning names them.

    Raises:
        UserError: It is unknown, or not there.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("gpu", "cuda", "mps"):
        raise UserError(f"accelerator is {accelerator!r}, and there is none here", 'use "auto" or "cpu"')
    raise UserError(f"unknown accelerator {accelerator!r}", "choose auto, cpu, gpu, cuda or mps")
