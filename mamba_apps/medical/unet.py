"""What every U-shaped network here shares: the plan's sizes, the check of its input, the decoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.medical.parts import Sizes, conv
from mamba_datasets.volumes import NetworkPlan


class SegmentationNetwork(nn.Module, ABC):
    """A network from images (B, C, *spatial) to the logits of every voxel, (B, K, *spatial).

    With ``deep_supervision``, an attribute that may be set at any time, it returns a list of logits instead: those of
    each resolution that it has some for, the finest first.

    Args:
        plan: Its sizes.
        in_channels: Channels of the image.
        num_classes: Number of classes (K), background included.
        deep_supervision: Whether it returns the logits of several resolutions.

    Raises:
        UserError: If a number is not positive, or a kernel size of the plan is even.
    """

    def __init__(
        self, plan: NetworkPlan, in_channels: int, num_classes: int, *, deep_supervision: bool = False
    ) -> None:
        super().__init__()
        for name, count in (("in_channels", in_channels), ("num_classes", num_classes)):
            if count < 1:
                raise UserError(f"{name} is {count}", "give at least 1")
        even = [size for size in plan.kernel_sizes if any(width % 2 == 0 for width in size)]
        if even:
            raise UserError(f"the plan's kernel sizes {even[0]} are even", "give odd ones, such as 1 and 3")
        self.plan, self.in_channels, self.num_classes = plan, in_channels, num_classes
        self.divisors = plan.divisors
        self.deep_supervision = deep_supervision

    @abstractmethod
    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of a checked image: with ``deep_supervision`` of every resolution, else of the finest."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment images.

        Args:
            x: The images (B, C, *spatial), each size a multiple of the plan's ``divisors``.

        Returns:
            The logits (B, K, *spatial), or with ``deep_supervision`` the list of them, the finest first.

        Raises:
            UserError: If the input's shape is none that this network can take.
        """
        self.check(x)
        logits = self.logits(x)
        return logits if self.deep_supervision else logits[0]

    def check(self, x: Tensor) -> None:
        """Raise an error that says so if the input's shape is none that this network can take."""
        dim = self.plan.dim
        if x.dim() != dim + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join("height width".split() if dim == 2 else "depth height width".split())
            raise UserError(
                f"{type(self).__name__} got an input of shape {tuple(x.shape)}",
                f"give (batch, {self.in_channels}, {axes}), or build the network for this input",
            )
        self.check_sizes(tuple(x.shape[2:]))

    def check_sizes(self, sizes: tuple[int, ...]) -> None:
        """Raise an error that says so if images of these sizes are none that this network can take."""
        divisors = self.divisors
        if any(size % divisor for size, divisor in zip(sizes, divisors, strict=True)):
            raise UserError(
                f"{type(self).__name__} got an image of {times(sizes)}, whose sizes its strides do not divide",
                f"pad each axis to a multiple of {times(divisors)}",
            )
        if math.prod(sizes) <= math.prod(divisors):
            raise UserError(
                f"{type(self).__name__} got an image of {times(sizes)}, of which one voxel is left at its bottleneck, "
                "where there is nothing to normalise",
                f"give more than {times(divisors)} voxels, or a plan with fewer strides",
            )


class Decoder(nn.Module):
    """From the features of an encoder up to logits.

    Args:
        plan: The sizes of the encoder.
        num_classes: Number of classes.
        up: Makes what enlarges a map, from the channels below and above and the factor of each axis.
        stage: Makes what follows, from the channels in and out, the kernel's sizes and the number of blocks.
        blocks: Number of blocks of each stage, the coarsest first.
        skip_at_finest: Whether the finest stage sees the encoder's features of its resolution.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        num_classes: int,
        up: Callable[[int, int, Sizes], nn.Module],
        stage: Callable[[int, int, Sizes, int], nn.Module],
        blocks: Sequence[int],
        skip_at_finest: bool = True,
    ) -> None:
        super().__init__()
        levels = list(reversed(range(plan.stages - 1)))
        widths = plan.features
        skips = [2 if level > 0 or skip_at_finest else 1 for level in levels]
        self.skip_at_finest = skip_at_finest
        self.upsample_layers = nn.ModuleList(
            up(widths[level + 1], widths[level], plan.strides[level + 1]) for level in levels
        )
        self.stages = nn.ModuleList(
            stage(times * widths[level], widths[level], plan.kernel_sizes[level], count)
            for level, times, count in zip(levels, skips, blocks, strict=True)
        )
        self.seg_layers = nn.ModuleList(conv(widths[level], num_classes, (1,) * plan.dim) for level in levels)

    def forward(self, features: Sequence[Tensor], every: bool) -> list[Tensor]:
        """Return the logits of every resolution, the finest first, or of the finest alone.

        Args:
            features: The encoder's, the finest first.
            every: Whether the coarser resolutions are wanted.
        """
        x = features[-1]
        logits: list[Tensor] = []
        last = len(self.stages) - 1
        for i, (up, stage, seg) in enumerate(zip(self.upsample_layers, self.stages, self.seg_layers, strict=True)):
            x = up(x)
            if i < last or self.skip_at_finest:
                x = torch.cat((x, features[last - i]), 1)
            x = stage(x)
            if every or i == last:
                logits.append(seg(x))
        return logits[::-1]


def times(sizes: Sequence[int]) -> str:
    """Return sizes as text: "48 x 160 x 224"."""
    return " x ".join(str(size) for size in sizes)
