"""UPerNet: pyramid pooling on the coarsest map, a feature pyramid over all of them (Xiao et al. 2018).

Dimensions in names: B batch, C channels, K classes, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED = (1, 2, 3, 6)


class UPerNetHead(nn.Module):
    """From maps of falling resolution to class scores at the resolution of the first.

    Args:
        channels: Channels of each map, finest first; at least two maps.
        classes: Number of classes.
        width: Channels inside.
        pooled: Side lengths to which the coarsest map is pooled.
        dropout: Rate at which whole channels are dropped before the classifier.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        width: int = 512,
        pooled: Sequence[int] = POOLED,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv_block(coarsest, width, 1)) for side in pooled
        )
        self.bottleneck = conv_block(coarsest + len(pooled) * width, width, 3)
        self.laterals = nn.ModuleList(conv_block(count, width, 1) for count in finer)
        self.smooth = nn.ModuleList(conv_block(width, width, 3) for _ in finer)
        self.fuse = conv_block(len(channels) * width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Return scores (B, K, H, W) at the size of the first map."""
        *finer, coarsest = maps_BCHW
        context = [upsample(pool(coarsest), coarsest) for pool in self.pools]
        levels = [self.bottleneck(torch.cat([coarsest, *context], dim=1))]
        for lateral, fine in zip(reversed(self.laterals), reversed(finer), strict=True):
            levels.append(lateral(fine) + upsample(levels[-1], fine))
        top, *rest = levels
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, reversed(rest), strict=True)]
        finest = smoothed[0]
        return self.classifier(self.fuse(torch.cat([upsample(level, finest) for level in (*smoothed, top)], dim=1)))


class FCNHead(nn.Sequential):
    """Class scores from one map, by which training reaches the middle of the backbone (Zhao et al. 2017).

    Args:
        channels: Channels of the map.
        classes: Number of classes.
        width: Channels inside.
        dropout: Rate at which whole channels are dropped before the classifier.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__(conv_block(channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))


def conv_block(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Return a convolution that keeps the size, batch norm and ReLU."""
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def upsample(maps_BCHW: Tensor, like: Tensor) -> Tensor:
    """Return maps at the size of another, bilinearly."""
    return F.interpolate(maps_BCHW, size=like.shape[-2:], mode="bilinear", align_corners=False)
