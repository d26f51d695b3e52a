"""Outputs and gradients of an operator, to be compared between its implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.layout import empty_in_order

Inputs = dict[str, Tensor | None]

# How an input may lie in memory: each takes a contiguous tensor and returns one of the same shape and, but for the
# broadcast ones, the same numbers.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "every_second": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_last": lambda x: x[..., :1].expand_as(x),
}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random normal numbers, the same ones in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def outcome(operator: Callable[..., Any], inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Run an operator on inputs given by name, and return its outputs and the gradient of every floating input.

    Each output is weighted by fixed random numbers. Inputs keep their strides.
    """
    leaves = {
        name: x.detach().requires_grad_() if x is not None and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    outputs = operator(**leaves, **options)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    weights = [draw(*y.shape, seed=7 + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    wanted = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), weights, allow_unused=True)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    for (name, x), gradient in zip(wanted.items(), gradients, strict=True):
        found[name] = torch.zeros_like(x) if gradient is None else gradient
    return found


def assert_agree(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Compare outcomes; ``tolerance`` is relative to the largest number of each tensor."""
    assert got.keys() == wanted.keys()
    for name, x in got.items():
        y = wanted[name]
        assert x.shape == y.shape, name
        assert torch.isfinite(x).all(), f"{name} is not finite"
        if x.numel():
            error = float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1e-3))
            assert error <= tolerance, f"{name} is off by {error:.1e}"


def dense_stride(x: Tensor) -> tuple[int, ...]:
    """Return the strides of a dense tensor in the dimension order of ``x``."""
    return empty_in_order(x).stride()
