"""The causal convolution on the CPU: what the compiled kernels read, and in how many tasks they run.

Dimensions: B batch, D channels, L length, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mamba_kernels.causal_conv1d.cpu_kernels import Plan, Reading, View, conv_backward, conv_forward
from mamba_kernels.causal_conv1d.steps import read_steps
from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.simd import LANES
from mamba_kernels.threads import run_tasks
from mamba_kernels.tiles import flat

# Inputs a task reads at least: enough to make up for the cost of calling it.
TASK_SIZE = 1 << 16


def _read(length: int, width: int, seq_idx_BL: Tensor | None, reverse: bool) -> Reading:
    """Return the steps as the kernels take them."""
    if seq_idx_BL is not None:
        steps_BL, reach_BL, counts_B = read_steps(seq_idx_BL, width, reverse)
        return Reading(steps_BL.numpy(), reach_BL.numpy(), counts_B.numpy(), 0)
    steps = np.arange(length, dtype=np.int32)[None]
    steps = np.ascontiguousarray(steps[:, ::-1]) if reverse else steps
    return Reading(steps, np.full((1, length), width - 1, dtype=np.int32), np.array([length]), 1)


def _view(x: Tensor | None, dtype: torch.dtype, rank: int = 3) -> View:
    """Return the view of a tensor, of a copy where its dtype differs, or of nothing."""
    if x is None:
        return View(torch.zeros(0, dtype=dtype).numpy(), (0,) * rank)
    x = x.to(dtype)
    return View(flat(x), x.stride())


def _run_items(kernel: Callable[..., None], x: Tensor, *arguments: object) -> None:
    """Run a kernel over all its items; how they are cut into tasks follows from the shapes alone."""
    batch, channels, length = x.shape
    items = batch * -(-channels // LANES)
    each = max(1, TASK_SIZE // (LANES * length))
    if items:
        run_tasks(lambda task: kernel(task * each, min(items, (task + 1) * each), *arguments), -(-items // each))


def _inputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool, dtype: torch.dtype
) -> tuple[Plan, View, View, View, View]:
    """Return the plan and the views of the inputs, in the order the kernels take them."""
    channels, width = weight.shape
    plan = Plan(channels, -(-channels // LANES), width, int(silu))
    bias_view = _view(None if bias is None else bias[:, None], dtype, rank=2)
    return plan, _view(x, dtype), _view(weight, dtype, rank=2), bias_view, _view(initial, dtype)


def _empty(like: Tensor, dtype: torch.dtype, reading: Reading) -> Tensor:
    """Return what takes results at all steps: zeros where there is padding, otherwise uninitialised."""
    result = empty_in_order(like, dtype)
    return result if int(reading.counts.min(initial=like.shape[2])) == like.shape[2] else result.zero_()


def _results(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the kernels write for ``t``: itself, or its like in the arithmetic's dtype."""
    return t if t.dtype == dtype else empty_in_order(t, dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    y: Tensor,
    final: Tensor | None,
) -> None:
    """Fill ``y``, and the final states where they are given."""
    dtype = compute_dtype(x, weight, bias, initial)
    reading = _read(x.shape[2], weight.shape[1], seq_idx, reverse)
    plan, *inputs = _inputs(x, weight, bias, initial, silu, dtype)
    if int(reading.counts.min(initial=x.shape[2])) < x.shape[2]:
        y.zero_()
    wide_y = _results(y, dtype)
    if wide_y is not y:
        wide_y.copy_(y)
    kept = x.new_empty(x.shape[0], x.shape[1], weight.shape[1] - 1) if final is None else final
    wide_final = _results(kept, dtype)
    _run_items(conv_forward, x, plan, reading, *inputs, _view(wide_y, dtype), _view(wide_final, dtype))
    for wide, result in ((wide_y, y), (wide_final, kept)):
        if wide is not result:
            result.copy_(wide)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
    final: Tensor | None,
) -> Tensor:
    """Return the output in the dimension order of x, and fill ``final``, where given, with the final states."""
    y = empty_in_order(x)
    _forward(x, weight, bias, seq_idx, initial, silu, reverse, y, final)
    return y


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and the initial states, in the dtypes and dimension orders of these."""
    dtype = compute_dtype(x, weight, bias, initial)
    batch, channels, _ = x.shape
    width = weight.shape[1]
    reading = _read(x.shape[2], width, seq_idx, reverse)
    plan, *inputs = _inputs(x, weight, bias, initial, silu, dtype)
    dx = _empty(x, dtype, reading)
    dinitial = None if initial is None else empty_in_order(initial, dtype)
    dweights = torch.empty(batch, channels, width, dtype=dtype)
    dbiases = torch.empty(batch, channels, 1, dtype=dtype)
    if dfinal is None:
        dfinal = torch.zeros(batch, channels, width - 1, dtype=dtype)
    gradients = (dy, dfinal, dx, dinitial, dweights, dbiases)
    _run_items(conv_backward, x, plan, reading, *inputs, *(_view(t, dtype) for t in gradients))
    return (
        dx.to(x.dtype),
        empty_in_order(weight).copy_(dweights.sum(0)),
        None if bias is None else empty_in_order(bias).copy_(dbiases.sum(0)[:, 0]),
        None if initial is None or dinitial is None else dinitial.to(initial.dtype),
    )


def forward_both(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, y: Tensor) -> None:
    """Fill ``y`` (B, 2, D, L) with the convolution from either end, each with its own filters (2, D, W)."""
    for k in range(2):
        _forward(x, weight[k], None if bias is None else bias[k], None, None, silu, k == 1, y[:, k], None)


def backward_both(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight and bias."""
    dtype = compute_dtype(x, weight, bias)
    dxs, dweights, dbiases = zip(
        *(
            backward(
                dy[:, k], None, x.to(dtype), weight[k], None if bias is None else bias[k], None, None, silu, k == 1
            )[:3]
            for k in range(2)
        ),
        strict=True,
    )
    return (
        empty_in_order(x).copy_(dxs[0].add_(dxs[1])),
        empty_in_order(weight).copy_(torch.stack(dweights)),
        None if bias is None else empty_in_order(bias).copy_(torch.stack(dbiases)),
    )
