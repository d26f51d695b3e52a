"""The operators on a GPU: eager time of forward and forward + backward, and the memory they take.

Times are medians of CUDA-event timings, autograd and the launches of Python included. Inputs are bfloat16, parameters
float32, at shapes of language models, Vision Mamba, Audio Mamba, 3-D segmentation and forecasting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import causal_conv1d, rms_norm, selective_scan

SCANS = {
    "language model": (8, 2048, 2048, 16),
    "Vim-S, 224 px": (128, 768, 197, 16),
    "Vim-Ti, 1248 px": (4, 384, 6085, 16),
    "Audio Mamba-B, 10 s": (32, 1536, 513, 16),
    "U-Mamba, 3-D": (2, 128, 32768, 16),
    "time series": (32, 1024, 321, 32),
    "long": (1, 1024, 262144, 16),
}  # B, D, L, N
CONVOLUTIONS = ((8, 2048, 2048), (128, 768, 197), (1, 1024, 262144))  # B, D, L; width 4
NORMS = ((25216, 384), (16384, 2048), (401408, 96))
LAYOUTS = ("channel last", "length last")


def _draw(layout: str, batch: int, channels: int, length: int) -> Tensor:
    """Return a leaf (B, D, L) in bfloat16 whose channels or positions lie side by side in memory."""
    if layout == "channel last":
        x = torch.randn(batch, length, channels, device="cuda", dtype=torch.bfloat16).mT
    else:
        x = torch.randn(batch, channels, length, device="cuda", dtype=torch.bfloat16)
    return x.requires_grad_()


def _parameter(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").requires_grad_()


def _measure(run: Callable[[], Tensor | tuple], leaves: Sequence[Tensor]) -> dict[str, float]:
    """Return milliseconds of forward and of forward + backward, and the memory above what the inputs take."""
    from triton.testing import do_bench

    def both() -> None:
        out = run()
        outs = (out,) if isinstance(out, Tensor) else out
        torch.autograd.grad(outs, leaves, cotangents)

    out = run()
    cotangents = [torch.randn_like(y) for y in ((out,) if isinstance(out, Tensor) else out)]
    del out
    with torch.no_grad():
        forward = do_bench(run, warmup=10, rep=50, return_mode="median")
    full = do_bench(both, warmup=10, rep=50, return_mode="median")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"forward_ms": forward, "forward_backward_ms": full, "peak_extra_mib": peak}


def _scan(layout: str, shape: tuple[int, ...]) -> dict[str, float]:
    batch, channels, length, states = shape
    u, delta, z = (_draw(layout, batch, channels, length) for _ in range(3))
    B, C = (_draw(layout, batch, states, length) for _ in range(2))
    A = (-torch.rand(channels, states, device="cuda") - 0.1).requires_grad_()
    D, bias = _parameter(channels), (torch.randn(channels, device="cuda") - 3).requires_grad_()
    leaves = [u, delta, A, B, C, D, z, bias]
    return _measure(lambda: selective_scan(u, delta, A, B, C, D, z, bias, True), leaves)


def _convolution(layout: str, shape: tuple[int, ...]) -> dict[str, float]:
    x, weight, bias = _draw(layout, *shape), _parameter(shape[1], 4), _parameter(shape[1])
    return _measure(lambda: causal_conv1d(x, weight, bias, activation="silu"), [x, weight, bias])


def _norm(shape: tuple[int, ...]) -> dict[str, float]:
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    residual, weight = _parameter(*shape), _parameter(shape[1])
    return _measure(lambda: rms_norm(x, weight, residual=residual, prenorm=True), [x, residual, weight])


def run_all(talk: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every case on the current GPU, telling each before it starts."""
    rows: list[dict[str, Any]] = []
    torch.manual_seed(0)

    def add(op: str, case: str, shape: tuple[int, ...], layout: str, measure: Callable[[], dict[str, float]]) -> None:
        talk(f"{op} {case} {shape} {layout}")
        rows.append({"op": op, "case": case, "shape": shape, "layout": layout, **measure()})
        torch.cuda.empty_cache()

    for layout in LAYOUTS:
        for name, scan in SCANS.items():
            add("selective_scan", name, scan, layout, partial(_scan, layout, scan))
        for convolution in CONVOLUTIONS:
            add("causal_conv1d", "width 4", convolution, layout, partial(_convolution, layout, convolution))
    for norm in NORMS:
        add("rms_norm", "with residual", norm, "rows", partial(_norm, norm))
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| operator | case | shape | layout | forward ms | forward + backward ms | peak extra MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = ", ".join(str(size) for size in row["shape"])
        lines.append(
            f"| {row['op']} | {row['case']} | {shape} | {row['layout']} | {row['forward_ms']:.3f} "
            f"| {row['forward_backward_ms']:.3f} | {row['peak_extra_mib']:.0f} |"
        )
    return "\n".join(lines)
