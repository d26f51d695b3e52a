"""What the U-shaped networks are made of, in 2-D and 3-D: convolutions, norms, residual blocks, up-sampling.

Names of submodules are those of U-Mamba's and nnU-Net's building blocks, so that released weights keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mamba_kernels.norm.instance import instance_norm

SLOPE = 0.01
"""Of the leaky ReLUs where their input is negative."""

Sizes = Sequence[int]


def conv(in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes | int = 1) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution with a bias; it divides sizes by its stride. ``kernel`` is odd, with an entry an axis."""
    padding = tuple(size // 2 for size in kernel)
    cls: type[Any] = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    return cls(in_channels, out_channels, tuple(kernel), stride if isinstance(stride, int) else tuple(stride), padding)


def norm_of(channels: int, dim: int) -> nn.InstanceNorm2d | nn.InstanceNorm3d:
    """Return a norm over each image's and channel's own map, with a learned scale and shift."""
    return (nn.InstanceNorm2d if dim == 2 else nn.InstanceNorm3d)(channels, affine=True)


def activate(x: Tensor) -> Tensor:
    """Apply the leaky ReLU in place."""
    return F.leaky_relu(x, SLOPE, inplace=True)


def normalised(
    x: Tensor, convolution: nn.Conv2d | nn.Conv3d, norm: nn.InstanceNorm2d | nn.InstanceNorm3d, activated: bool = False
) -> Tensor:
    """Convolve maps (B, C, *spatial), normalise what comes out, and apply the leaky ReLU if ``activated``.

    The convolution's bias is left out: the norm takes it away again, and it costs two passes over the map.
    """
    convolve: Any = F.conv2d if x.dim() == 4 else F.conv3d
    y = convolve(x, convolution.weight, None, convolution.stride, convolution.padding)
    # it has a gradient nevertheless, as every parameter must where several processes train
    shift = norm.bias if convolution.bias is None else norm.bias + 0 * convolution.bias
    return instance_norm(y, norm.weight, shift, norm.eps, SLOPE if activated else 1.0)


def he_init(module: nn.Module) -> None:
    """Draw a convolution's weights anew with He's variance for leaky ReLUs and clear its bias; for ``Module.apply``."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvNorm(nn.Module):
    """A convolution and an instance norm; the arguments are those of `conv`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes | int = 1) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.norm = norm_of(out_channels, len(kernel))

    def forward(self, x: Tensor, activated: bool = False) -> Tensor:
        """Return the normalised map, through the leaky ReLU if ``activated``."""
        return normalised(x, self.conv, self.norm, activated)


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1 x 1 convolution, which is there whether or not the size changes.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Sizes of the kernels, odd, an entry an axis.
        stride: Of the first convolution and of the one beside it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes | int = 1) -> None:
        super().__init__()
        dim = len(kernel)
        self.conv1 = conv(in_channels, out_channels, kernel, stride)
        self.norm1 = norm_of(out_channels, dim)
        self.conv2 = conv(out_channels, out_channels, kernel)
        self.norm2 = norm_of(out_channels, dim)
        self.conv3 = conv(in_channels, out_channels, (1,) * dim, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        y = normalised(x, self.conv1, self.norm1, activated=True)
        return activate(normalised(y, self.conv2, self.norm2) + self.conv3(x))


class IdentityBlock(nn.Module):
    """Two convolutions beside the identity.

    Args:
        channels: Channels of the input and of the output.
        kernel: Sizes of the kernels, odd, an entry an axis.
    """

    def __init__(self, channels: int, kernel: Sizes) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, kernel)
        self.conv2 = ConvNorm(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        return activate(self.conv2(self.conv1(x, activated=True)) + x)


class ConvStage(nn.Sequential):
    """Convolutions with norms and activations, the first with a stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Sizes of the kernels, odd, an entry an axis.
        count: Number of convolutions.
        stride: Of the first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sizes, count: int, stride: Sizes | int = 1) -> None:
        first = ConvNorm(in_channels, out_channels, kernel, stride)
        super().__init__(first, *(ConvNorm(out_channels, out_channels, kernel) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's map."""
        for part in self:
            x = part(x, activated=True)
        return x


def residual_stage(
    in_channels: int, out_channels: int, kernel: Sizes, count: int, stride: Sizes | int = 1
) -> nn.Sequential:
    """Return ``count`` residual blocks, the first with the stride; the arguments are those of `ConvStage`."""
    first = ResidualBlock(in_channels, out_channels, kernel, stride)
    return nn.Sequential(first, *(IdentityBlock(out_channels, kernel) for _ in range(count - 1)))


class NearestUp(nn.Module):
    """Repeat every cell and change the number of channels by a 1 x 1 convolution.

    The reference convolves the repeated map; convolving first gives the same numbers for a fraction of the work.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        factor: How often a cell is repeated along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: Sizes) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, (1,) * len(factor))
        self.factor = tuple(float(repeats) for repeats in factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger map."""
        return F.interpolate(self.conv(x), scale_factor=self.factor, mode="nearest")


def transposed_up(in_channels: int, out_channels: int, factor: Sizes) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Return a convolution that spreads every cell over ``factor`` cells; its arguments are `NearestUp`'s."""
    cls: type[Any] = nn.ConvTranspose2d if len(factor) == 2 else nn.ConvTranspose3d
    return cls(in_channels, out_channels, tuple(factor), tuple(factor))
