"""MONAI's SegResNet and SwinUNETR behind the interface of the networks here; MONAI is imported where one is built."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.medical.unet import SegmentationNetwork, times
from mamba_datasets.volumes import NetworkPlan


class Baseline(SegmentationNetwork):
    """A network with strides of its own on images of the plan's: they are padded with zeros, and its logits cropped.

    It has logits of one resolution: with deep supervision they stand alone in the list.

    Args:
        network: From (B, C, *spatial) to (B, K, *spatial), every size a multiple of ``multiple``.
        multiple: Of which number it takes sizes; its bottleneck's map is smaller by as much.
        least: How many cells that map has at least.
        plan: The sizes of the images.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether it returns a list.

    Raises:
        UserError: If an argument is out of range, or the patch is too small for its strides.
    """

    def __init__(
        self,
        network: nn.Module,
        multiple: int,
        least: int,
        plan: NetworkPlan,
        in_channels: int,
        num_classes: int,
        *,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(plan, in_channels, num_classes, deep_supervision=deep_supervision)
        self.network, self.multiple, self.least = network, multiple, least
        self.check_sizes(plan.patch_size)

    def check_sizes(self, sizes: tuple[int, ...]) -> None:
        """Raise an error that says so if images of these sizes are none that this network can take."""
        if math.prod(-(-size // self.multiple) for size in sizes) < self.least:
            raise UserError(
                f"{type(self.network).__name__} got an image of {times(sizes)}, of which one voxel is left at its "
                "bottleneck, where there is nothing to normalise",
                f"give a plan whose patch has more than {self.multiple} voxels along an axis",
            )

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of a checked image, alone in a list."""
        sizes = x.shape[2:]
        more = [-size % self.multiple for size in sizes]
        if any(more):
            # The last axis comes first; the rest of an odd number goes to the far side.
            sides = [side for extra in reversed(more) for side in (extra // 2, extra - extra // 2)]
            y = self.network(F.pad(x, sides))
            for axis, (extra, size) in enumerate(zip(more, sizes, strict=True), start=2):
                y = y.narrow(axis, extra // 2, size)
            return [y]
        return [self.network(x)]


def seg_res_net(
    plan: NetworkPlan,
    in_channels: int,
    num_classes: int,
    *,
    deep_supervision: bool = False,
    init_filters: int = 32,
    blocks_down: tuple[int, ...] = (1, 2, 2, 4),
    blocks_up: tuple[int, ...] = (1, 1, 1),
) -> Baseline:
    """Build MONAI's SegResNet (Myronenko, arXiv 1810.11654), by default as in U-Mamba's comparison.

    Args:
        plan: The sizes of the images; those of the network are its own.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether the network returns a list.
        init_filters: Channels of the first level, a multiple of 8; each further level has twice as many.
        blocks_down: Residual blocks of each level on the way down.
        blocks_up: The same on the way up, one entry less.

    Raises:
        UserError: If MONAI is missing, or refuses a size.
    """
    network = _made(
        "SegResNet", spatial_dims=plan.dim, init_filters=init_filters, in_channels=in_channels,
        out_channels=num_classes, blocks_down=tuple(blocks_down), blocks_up=tuple(blocks_up),
    )  # fmt: skip
    multiple = 2 ** (len(blocks_down) - 1)
    return Baseline(network, multiple, 1, plan, in_channels, num_classes, deep_supervision=deep_supervision)


def swin_unetr(
    plan: NetworkPlan,
    in_channels: int,
    num_classes: int,
    *,
    deep_supervision: bool = False,
    feature_size: int = 48,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    num_heads: tuple[int, ...] = (3, 6, 12, 24),
    use_checkpoint: bool = False,
) -> Baseline:
    """Build MONAI's SwinUNETR (Hatamizadeh et al., arXiv 2201.01266), by default as in U-Mamba's comparison.

    Args:
        plan: The sizes of the images; those of the network are its own.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether the network returns a list.
        feature_size: Channels of the first level, a multiple of 12.
        depths: Blocks of each of the four levels.
        num_heads: Heads of attention of each level.
        use_checkpoint: Whether blocks are computed anew in the backward pass rather than kept.

    Raises:
        UserError: If MONAI is missing, or refuses a size.
    """
    network = _made(
        "SwinUNETR", spatial_dims=plan.dim, in_channels=in_channels, out_channels=num_classes,
        feature_size=feature_size, depths=tuple(depths), num_heads=tuple(num_heads), use_checkpoint=use_checkpoint,
    )  # fmt: skip
    # Its instance norms need two cells.
    return Baseline(network, 32, 2, plan, in_channels, num_classes, deep_supervision=deep_supervision)


def _made(name: str, **arguments: Any) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise UserError(f"{name} is MONAI's, which is not installed", "pip install 'mamba-apps[medical]'") from error
    try:
        return getattr(nets, name)(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {error}", "correct its options") from error
