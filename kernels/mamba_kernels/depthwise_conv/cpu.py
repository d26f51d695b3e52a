"""The depthwise convolution on the CPU: PyTorch's own, which is fast there with channels last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.depthwise_conv.reference import CONVOLUTIONS
from mamba_kernels.layout import empty_in_order


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of x (B, C, *spatial), which is in the dtype of the arithmetic."""
    shift = None if bias is None else bias.to(x.dtype)
    return CONVOLUTIONS[x.dim() - 2](x, weight.to(x.dtype)[:, None], shift, padding=1, groups=weight.shape[0])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Return the output in the dimension order of x."""
    y = _convolve(x.to(compute_dtype(x, weight, bias)).movedim(-1, 1), weight, bias)
    if silu:
        y = F.silu(y, inplace=True)
    return empty_in_order(x).copy_(y.movedim(1, -1))


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight and bias, in the dtypes and dimension orders of these."""
    dtype = compute_dtype(x, weight, bias)
    moved, grad = x.to(dtype).movedim(-1, 1), dy.to(dtype).movedim(-1, 1)
    if silu:
        v = _convolve(moved, weight, bias)
        sigmoid = v.sigmoid()
        grad = grad * (sigmoid * (1 + v * (1 - sigmoid)))
    rank = x.dim() - 2
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, moved, weight.to(dtype)[:, None], [weight.shape[0]], [1] * rank, [1] * rank, [1] * rank, False,
        [0] * rank, weight.shape[0], [True, True, bias is not None],
    )  # fmt: skip
    return (
        empty_in_order(x).copy_(dx.movedim(1, -1)),
        empty_in_order(weight).copy_(dweight[:, 0]),
        None if bias is None else empty_in_order(bias).copy_(dbias),
    )
