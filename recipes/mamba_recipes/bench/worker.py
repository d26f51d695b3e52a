"""The benchmark's child: builds one case, warms it up, times it, and prints one JSON line.

`idle_mib` is the resident memory once everything is imported, compiled and loaded but before the case's tensors exist;
`peak_above_idle_mib` is how far the process's peak rose above it while the case ran.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mamba_recipes.memory import forget_peak, peak_mib, release_free, resident_mib

Step = Callable[[], None]


def scan_inputs(shape: tuple[int, ...], *, channel_last: bool) -> list[Tensor]:
    """Return u, delta, A, B, C, D of the scan: (B, L, D) and (B, L, N) memory, or its transposed view."""
    batch, length, channels, states = shape
    u, delta = torch.randn(batch, length, channels), torch.rand(batch, length, channels) * 0.1 + 1e-3
    B, C = torch.randn(batch, length, states), torch.randn(batch, length, states)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    inputs = [u, delta, A, B, C, torch.ones(channels)]
    for tensor in inputs:
        tensor.requires_grad_()
    return inputs if channel_last else [t.mT if t.dim() == 3 else t for t in inputs]


def selective_scan_ours(shape: tuple[int, ...]) -> Step:
    """Forward and backward of our scan, reading the rival's own (B, L, D) memory through a transposed view."""
    from mamba_kernels import selective_scan

    leaves = scan_inputs(shape, channel_last=True)
    cotangent = torch.randn(shape[0], shape[1], shape[2])

    def step() -> None:
        u, delta, A, B, C, D = leaves
        y_BDL = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D)
        torch.autograd.grad(y_BDL, leaves, cotangent.mT)

    return step


def selective_scan_mambapy(shape: tuple[int, ...]) -> Step:
    """Forward and backward of mambapy's parallel scan (`MambaBlock.selective_scan`), in its own layout."""
    from mambapy.mamba import MambaBlock

    leaves = scan_inputs(shape, channel_last=True)
    cotangent = torch.randn(shape[0], shape[1], shape[2])

    def step() -> None:
        y_BLD = MambaBlock.selective_scan(None, *leaves)
        torch.autograd.grad(y_BLD, leaves, cotangent)

    return step


def _conv_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels, width = shape
    x_BDL = torch.randn(batch, channels, length, requires_grad=True)
    weight_DW = torch.randn(channels, width, requires_grad=True)
    bias_D = torch.randn(channels, requires_grad=True)
    return x_BDL, weight_DW, bias_D, torch.randn(batch, channels, length)


def causal_conv1d_ours(shape: tuple[int, ...]) -> Step:
    """Forward and backward of our causal convolution with SiLU."""
    from mamba_kernels import causal_conv1d

    x_BDL, weight_DW, bias_D, cotangent = _conv_inputs(shape)

    def step() -> None:
        y_BDL = causal_conv1d(x_BDL, weight_DW, bias_D, activation="silu")
        torch.autograd.grad(y_BDL, (x_BDL, weight_DW, bias_D), cotangent)

    return step


def causal_conv1d_torch(shape: tuple[int, ...]) -> Step:
    """The same convolution by torch: grouped conv1d, cut to the length, SiLU."""
    x_BDL, weight_DW, bias_D, cotangent = _conv_inputs(shape)
    length, channels, width = shape[1:]

    def step() -> None:
        y_BDL = torch.nn.functional.conv1d(x_BDL, weight_DW[:, None], bias_D, padding=width - 1, groups=channels)
        torch.autograd.grad(torch.nn.functional.silu(y_BDL[..., :length]), (x_BDL, weight_DW, bias_D), cotangent)

    return step


def rms_norm_ours(shape: tuple[int, ...]) -> Step:
    """Forward and backward of our RMSNorm with the residual added inside."""
    from mamba_kernels import rms_norm

    x, residual = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    weight, cotangent = torch.ones(shape[1], requires_grad=True), torch.randn(shape)

    def step() -> None:
        y, added = rms_norm(x, weight, residual=residual, prenorm=True)
        torch.autograd.grad((y, added), (x, residual, weight), (cotangent, cotangent))

    return step


def rms_norm_torch(shape: tuple[int, ...]) -> Step:
    """The same by torch: add, then `torch.nn.functional.rms_norm`."""
    x, residual = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    weight, cotangent = torch.ones(shape[1], requires_grad=True), torch.randn(shape)

    def step() -> None:
        added = x + residual
        y = torch.nn.functional.rms_norm(added, (shape[1],), weight, 1e-5)
        torch.autograd.grad((y, added), (x, residual, weight), (cotangent, cotangent))

    return step


BUILDERS: dict[tuple[str, str], Callable[[tuple[int, ...]], Step]] = {
    ("selective_scan", "ours"): selective_scan_ours,
    ("selective_scan", "mambapy"): selective_scan_mambapy,
    ("causal_conv1d", "ours"): causal_conv1d_ours,
    ("causal_conv1d", "torch"): causal_conv1d_torch,
    ("rms_norm", "ours"): rms_norm_ours,
    ("rms_norm", "torch"): rms_norm_torch,
}
# A shape of the same rank that costs nothing, so that imports, compilation and thread pools are part of the idle state.
SMALL = {"selective_scan": (1, 8, 8, 4), "causal_conv1d": (1, 8, 8, 4), "rms_norm": (8, 8)}


def measure(job: dict) -> dict[str, object]:
    """Run the job's case and return its row: milliseconds of forward + backward, and memory."""
    torch.set_num_threads(job["threads"])
    build = BUILDERS[job["op"], job["by"]]
    torch.manual_seed(0)
    first = time.perf_counter()
    build(SMALL[job["op"]])()
    first_call = time.perf_counter() - first
    release_free()
    forget_peak()
    idle = resident_mib()

    step = build(tuple(job["shape"]))
    for _ in range(3):
        step()
    times = []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return {
        **{key: job[key] for key in ("op", "by", "shape", "threads", "repeats")},
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "first_call_s": first_call,
        "idle_mib": idle,
        "peak_above_idle_mib": peak_mib() - idle,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
