"""The instance norm against PyTorch's: as it is, and cut into parts, with a stand-in for kernels that a CPU lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.norm import instance
from mamba_kernels.norm.instance import instance_norm, plane_parts


class Kernels:
    """What SyncBatchNorm's kernels compute on (1, planes, cells), in the numbers' own precision."""

    @staticmethod
    def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2)), (x.var((0, 2), correction=0) + eps).rsqrt()

    @staticmethod
    def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
        return (x - mean[:, None]) * (scale * weight)[:, None] + bias[:, None]

    @staticmethod
    def batch_norm_backward_reduce(dy: Tensor, x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None]:
        return dy.sum((0, 2)), (dy * (x - mean[:, None])).sum((0, 2)), None, None

    @staticmethod
    def batch_norm_backward_elemt(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        weight: Tensor,
        total: Tensor,
        product: Tensor,
        count: Tensor,
    ) -> Tensor:
        along = (x - mean[:, None]) * (product * scale**2 / count)[:, None]
        return (dy - (total / count)[:, None] - along) * (scale * weight)[:, None]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every plane in three, on the CPU."""
    monkeypatch.setattr(instance._InParts, "ops", Kernels)
    monkeypatch.setattr(instance, "_parts_on", lambda x: 3)


def both(
    shape: tuple[int, ...], slope: float, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> list[tuple[Tensor, ...]]:
    """Return the result and the gradients of PyTorch's, and of ours."""
    torch.manual_seed(0)
    x, there = (torch.randn(shape, device=device, dtype=dtype) * 2 + 1 for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.randn(shape[1], device=device, dtype=wide) for _ in range(2))
    found = []
    for ours in (False, True):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        if ours:
            y = instance_norm(*inputs, slope=slope)
        else:
            y = F.leaky_relu(F.instance_norm(inputs[0], None, None, *inputs[1:]), slope)
        found.append((y.detach(), *torch.autograd.grad(y, inputs, there)))
    return found


@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (1, 4, 5, 6, 7), (3, 2, 6, 2, 9)], ids=str)
def test_it_is_pytorchs(shape: tuple[int, ...], slope: float) -> None:
    expected, found = both(shape, slope)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (1, 4, 5, 6, 7), (3, 2, 6, 2, 9)], ids=str)
def test_parts_are_put_together(shape: tuple[int, ...], slope: float) -> None:
    expected, found = both(shape, slope)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert one.dtype == other.dtype


@pytest.mark.parametrize(
    ("planes", "cells", "parts"),
    [
        (64, 40 * 224 * 192, 16),
        (288, 40 * 56 * 40, 4),
        (640, 840, 1),
        (2048, 10**6, 1),
        (1, 2 * 2048 + 1, 1),
        (1, 3 * 2053, 3),
        (1, 10**6 + 3, 1),
    ],
)
def test_planes_are_cut_where_a_gpu_would_idle(planes: int, cells: int, parts: int) -> None:
    assert plane_parts(planes, cells) == parts


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 12, 96, 80), (1, 3, 7, 61, 53), (1, 2, 300, 211), (3, 64, 4, 5, 6)], ids=str)
def test_parts_are_put_together_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected, found = both(shape, 0.01, "cuda", dtype)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.gpu
def test_a_network_in_half_precision_on_a_gpu() -> None:
    x = torch.randn(2, 4, 8, 64, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    weight, bias = (torch.randn(4, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(2))
    y = instance_norm(x, weight, bias)
    y.sum().backward()
    expected = F.instance_norm(x.float(), None, None, weight.float(), bias.float())
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float16 for tensor in (x, weight, bias))
