"""Dimension orders: what results inherit from their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mamba_kernels.layout import dimension_order, empty_in_order, in_order_of

X = torch.arange(24.0).view(2, 3, 4)

CASES: dict[str, tuple[Tensor, list[int]]] = {
    "contiguous": (X, [0, 1, 2]),
    "channel last": (X.transpose(1, 2), [0, 2, 1]),
    "batch last": (X.permute(1, 2, 0), [2, 0, 1]),
    "sliced": (X[:, ::2, 1:3], [0, 1, 2]),
    "sliced and permuted": (X[:, ::2].permute(2, 1, 0), [2, 1, 0]),
    "a size of 1 keeps its place": (X[:, :1].transpose(1, 2), [0, 1, 2]),
    "expanded keeps its place": (X[:1].expand(5, 3, 4), [0, 1, 2]),
    "expanded last": (X.transpose(1, 2)[..., :1].expand(2, 4, 6), [0, 1, 2]),
    "expanded in the middle": (X.permute(2, 1, 0)[:, :1].expand(4, 7, 2), [2, 0, 1]),
    "one dimension": (X[0, 0], [0]),
}


@pytest.mark.parametrize("name", CASES)
def test_dimension_order(name: str) -> None:
    x, order = CASES[name]
    assert dimension_order(x) == order
    result = empty_in_order(x, torch.bfloat16)
    assert (result.shape, result.dtype) == (x.shape, torch.bfloat16)
    assert result.permute(order).is_contiguous()
    assert dimension_order(result) == order


def test_a_result_is_copied_only_where_its_order_differs() -> None:
    like = X.transpose(1, 2)
    y = torch.ones(2, 4, 3, requires_grad=True)
    moved = in_order_of(y, like)
    assert moved.stride() == like.stride()
    assert torch.equal(moved, y)
    assert in_order_of(moved, like).data_ptr() == moved.data_ptr()
    moved.sum().backward()
    assert torch.equal(y.grad, torch.ones_like(y))
