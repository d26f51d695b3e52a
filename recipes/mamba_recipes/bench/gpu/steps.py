"""What a step of a whole model costs: milliseconds, memory, and the kernels that the GPU works on longest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
_KERNELS_SHOWN = 15


def measure_step(name: str, step: Callable[[], Tensor], steps: int) -> Row:
    """Return a step's milliseconds, the most memory it takes, and what `profile_step` finds.

    Raises:
        FloatingPointError: If what it returns is not finite.
    """
    for _ in range(3):
        last = step()
    if not bool(last.isfinite().all()):
        raise FloatingPointError(f"{name} gives results that are not finite")
    torch.cuda.reset_peak_memory_stats()
    times = step_times(step, steps)
    return {"ms": median(times), "peak_mib": torch.cuda.max_memory_allocated() / 2**20, **profile_step(step)}


def step_times(step: Callable[[], object], steps: int) -> list[float]:
    """Return the milliseconds of some steps, one after another, the first two left out."""
    for _ in range(2):
        step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def profile_step(step: Callable[[], object]) -> Row:
    """Return how long the GPU works in one step, how long of it on scans, and the kernels it works on longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda event: -event.device_time_total)
    kernels = [
        {"kernel": event.key, "calls": event.count, "ms": event.device_time_total / 1e3}
        for event in events
        if event.device_time_total > 0
    ]
    scans = (kernel["ms"] for kernel in kernels if kernel["kernel"].startswith("scan_"))
    busy = sum(kernel["ms"] for kernel in kernels)
    return {"gpu_ms": busy, "scans_ms": sum(scans), "kernels": kernels[:_KERNELS_SHOWN]}


def kernel_lines(what: str, row: Row) -> list[str]:
    """Return the kernels of a row's training step as lines, under one that says whose they are."""
    lines = [f"{what}, a training step: {row['training_gpu_ms']:.1f} ms on the GPU"]
    for kernel in row["training_kernels"]:
        share = kernel["ms"] / row["training_gpu_ms"]
        lines.append(f"  {share:5.1%}  {kernel['ms']:7.2f} ms  {kernel['calls']:4d} x  {kernel['kernel'][:100]}")
    return lines
