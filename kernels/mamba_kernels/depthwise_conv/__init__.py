"""The depthwise convolution of grids whose channels come last."""

from mamba_kernels.depthwise_conv.op import depthwise_conv

__all__ = ["depthwise_conv"]
