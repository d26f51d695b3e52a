"""The depthwise convolution in plain PyTorch: the definition the fast paths are tested against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of

CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


def depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve by PyTorch's grouped convolution; the arguments are those of `depthwise_conv`, already checked."""
    dtype = compute_dtype(x, weight, bias)
    convolve = CONVOLUTIONS[weight.dim() - 1]
    shift = None if bias is None else bias.to(dtype)
    y = convolve(x.to(dtype).movedim(-1, 1), weight.to(dtype)[:, None], shift, padding=1, groups=weight.shape[0])
    if silu:
        y = F.silu(y)
    return in_order_of(y.movedim(1, -1).to(x.dtype), x)
