"""The parameters of scans: made with few launches, they are what plain operations make of them, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mamba_apps.mixers.scan_weights import _in_graph, scan_weights, stack_groups


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(outputs, inputs, [torch.randn_like(out) for out in outputs]))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_what_plain_operations_make(dtype: torch.dtype, rank: int, shared: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, rank + 4, 5), (2, 5, rank), (2, 5, 2))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    made = scan_weights(*inputs, dtype, shared=shared)
    plain = _in_graph(*inputs, dtype, shared)
    assert sum(made.widths) * (1 if shared else 2) == made.project.numel() // 5
    for found, expected in zip(made[:3], plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for found, expected in zip(gradients(made[:3], inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_the_padding_changes_no_step_size(shared: bool) -> None:
    torch.manual_seed(0)
    project, delta, x = torch.randn(2, 7, 5), torch.randn(2, 5, 3), torch.randn(2, 4, 5)
    x = x[:1].expand(2, -1, -1) if shared else x
    weights = scan_weights(project, delta, torch.zeros(2, 5, 2), torch.float32, shared=shared)
    columns = x[0] @ weights.project.mT if shared else torch.bmm(x, weights.project.mT)
    parts = [
        part.unflatten(-1, (2, -1)).movedim(-2, 0) if shared else part for part in columns.split(weights.widths, -1)
    ]
    low, B, C = torch.bmm(x, project.mT).split([3, 2, 2], -1)
    for found, expected in zip((parts[0] @ weights.delta.mT, *parts[1:]), (low @ delta.mT, B, C), strict=True):
        torch.testing.assert_close(found, expected)


def test_stacks_of_parts_in_two_dtypes_give_each_part_its_gradient() -> None:
    groups = [[torch.randn(2, 3, requires_grad=True) for _ in range(2)]]
    groups.append([torch.randn(4, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)])
    stacks = stack_groups(*groups)
    for stack, group in zip(stacks, groups, strict=True):
        assert torch.equal(stack, torch.stack(group).float())
    (stacks[0][0].sum() + 3 * stacks[1][1].sum()).backward()
    assert [float(part.grad.sum()) for group in groups for part in group if part.grad is not None] == [6, 0, 0, 12]
    assert groups[1][1].grad is not None
    assert groups[1][1].grad.dtype == torch.bfloat16


def test_they_can_be_differentiated_twice() -> None:
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 3), (2, 3, 1), (2, 3, 2))]
    assert torch.autograd.gradgradcheck(lambda *given: scan_weights(*given, torch.float64, shared=True)[:3], inputs)
