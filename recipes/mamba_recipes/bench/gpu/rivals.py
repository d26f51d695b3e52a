"""What people use today, where it is installed, with the arguments of our operators."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Rivals = dict[str, Callable[..., Any]]


def installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def _import(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), name)


def scans() -> Rivals:
    """Return the selective scans: that of mamba-ssm."""
    if not installed("mamba_ssm"):
        return {}

    def original(*, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Tensor) -> Tensor:
        function = _import("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
        return function(u, delta, A, B, C, **rest, delta_softplus=True)

    return {"mamba-ssm": original}


def ssds() -> Rivals:
    """Return the scans of Mamba-2: that of mamba-ssm, in the chunks its models have."""
    if not installed("mamba_ssm"):
        return {}

    def original(*, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Tensor) -> Tensor:
        function = _import("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
        return function(x, dt, A, B, C, 256, **rest, dt_softplus=True)

    return {"mamba-ssm": original}


def convolutions() -> Rivals:
    """Return the causal convolutions with SiLU: PyTorch's, and those of causal-conv1d and flash-linear-attention."""

    def torchs(*, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters, width = weight[:, None].to(x.dtype), weight.shape[1]
        y = F.conv1d(x, filters, bias.to(x.dtype), padding=width - 1, groups=x.shape[1])
        return F.silu(y[..., : x.shape[2]])

    found: Rivals = {"torch": torchs}
    if installed("causal_conv1d"):

        def original(*, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            function = _import("causal_conv1d", "causal_conv1d_fn")
            return function(x, weight.to(x.dtype), bias.to(x.dtype), activation="silu")

        found["causal-conv1d"] = original
    if installed("fla"):

        def linear_attentions(*, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            function = _import("fla.modules.causal_conv1d", "causal_conv1d")
            return function(x.mT, weight, bias, activation="silu")[0].mT

        found["fla"] = linear_attentions
    return found


def grid_convolutions(rank: int) -> Rivals:
    """Return the depthwise convolutions of channel-last grids with SiLU: PyTorch's."""
    convolve = F.conv2d if rank == 2 else F.conv3d

    def torchs(*, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters = weight[:, None].to(x.dtype)
        return F.silu(convolve(x.movedim(-1, 1), filters, bias.to(x.dtype), padding=1, groups=x.shape[-1])).movedim(
            1, -1
        )

    return {"torch": torchs}


def residual_norms() -> Rivals:
    """Return the RMS norms that add a residual and return the sum too: PyTorch's and mamba-ssm's."""

    def torchs(*, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        added = x + residual
        return F.rms_norm(added, weight.shape, weight, 1e-5).to(x.dtype), added

    found: Rivals = {"torch": torchs}
    if installed("mamba_ssm"):

        def original(*, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            function = _import("mamba_ssm.ops.triton.layer_norm", "rms_norm_fn")
            return function(x, weight, None, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True)

        found["mamba-ssm"] = original
    return found
