"""What the operators' GPU launchers share; importable without Triton and without a GPU."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError

P = ParamSpec("P")
R = TypeVar("R")
# What CUDA launches at most: programs along every axis of a grid but the first, and programs in all (Triton's launcher
# multiplies the axes in 32 bits, and launches nothing where that overflows).
MAX_LATER_AXIS = 65_535
MAX_PROGRAMS = 2**31 - 1


def ceil_divide(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """Return the number of the GPU's multiprocessors; 1 where kernels are interpreted on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def launch_grid(op: str, *sizes: int) -> tuple[int, ...]:
    """Return a grid of programs that a GPU can launch; the batch belongs into its first axis, which is the long one.

    Raises:
        KernelInputError: If an axis or the whole is past what CUDA launches.
    """
    if math.prod(sizes) > MAX_PROGRAMS or max(sizes[1:], default=0) > MAX_LATER_AXIS:
        raise KernelInputError(
            f"{op}: the inputs need a grid of {' x '.join(map(str, sizes))} GPU programs, which CUDA cannot launch",
            "split the batch, or pass backend='reference'",
        )
    return sizes


def on_device_of_inputs(launch: Callable[P, R]) -> Callable[P, R]:
    """Make a launcher run with its first tensor's GPU as the current one: Triton launches on that GPU's stream."""

    @functools.wraps(launch)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        device = first.device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return launch(*args, **kwargs)
        with torch.cuda.device(device):
            return launch(*args, **kwargs)

    return run


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from collecting garbage while a CUDA graph is captured.

    An old graph may be among it, and none can be destroyed then: the capture would fail.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def refuse_float64(op: str, *tensors: Tensor | None) -> None:
    """Raise KernelInputError if a tensor is float64: the GPU kernels compute in float32."""
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        raise KernelInputError(
            f"{op}: the GPU kernel computes in float32, and an input is float64",
            "convert the inputs to float32, or pass backend='reference'",
        )
