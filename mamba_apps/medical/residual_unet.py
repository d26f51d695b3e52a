"""The residual U-Net in which U-Mamba puts its Mamba layers: without them, U-Mamba's twin for comparisons."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mamba_apps.medical.parts import NearestUp, he_init, residual_stage
from mamba_apps.medical.unet import Decoder, SegmentationNetwork
from mamba_datasets.volumes import NetworkPlan


class ResidualEncoder(nn.Module):
    """A stem and stages of residual blocks, after some of which stands a layer of another kind.

    Args:
        plan: The sizes.
        in_channels: Channels of the image.
        blocks: Number of residual blocks of each stage; the stem has as many as the first.
    """

    def __init__(self, plan: NetworkPlan, in_channels: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        widths = plan.features
        self.stem = residual_stage(in_channels, widths[0], plan.kernel_sizes[0], blocks[0])
        self.stages = nn.ModuleList(
            residual_stage(widths[max(s - 1, 0)], widths[s], plan.kernel_sizes[s], blocks[s], plan.strides[s])
            for s in range(plan.stages)
        )
        # By the number of the stage whose map it takes and replaces.
        self.mamba_layers = nn.ModuleDict()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of each stage, the finest first."""
        features, x = [], self.stem(x)
        for s, stage in enumerate(self.stages):
            x = stage(x)
            if str(s) in self.mamba_layers:
                x = self.mamba_layers[str(s)](x)
            features.append(x)
        return features


class ResidualUNet(SegmentationNetwork):
    """U-Mamba's U-Net as published, without a Mamba layer.

    Of the blocks that the plan asks for it takes one alone in the deeper half of the encoder and in the finer half of
    the decoder, and in 2-D the finest stage of the decoder sees no features of the encoder: so does the published code.

    Args:
        plan: The sizes.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        deep_supervision: Whether it returns the logits of every resolution but the bottleneck's, the finest first.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, plan: NetworkPlan, in_channels: int, num_classes: int, *, deep_supervision: bool = False
    ) -> None:
        super().__init__(plan, in_channels, num_classes, deep_supervision=deep_supervision)
        encoder_blocks, decoder_blocks = published_blocks(plan)
        self.encoder = ResidualEncoder(plan, in_channels, encoder_blocks)
        self.decoder = Decoder(plan, num_classes, NearestUp, residual_stage, decoder_blocks, plan.dim == 3)
        self.apply(he_init)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of a checked image; see ``SegmentationNetwork``."""
        return self.decoder(self.encoder(x), self.deep_supervision)


def published_blocks(plan: NetworkPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of blocks of the encoder's stages, and of the decoder's from the coarsest on."""
    deeper, finer = math.ceil(plan.stages / 2), math.ceil((plan.stages - 1) / 2 + 0.5)
    encoder = tuple(1 if s >= deeper else count for s, count in enumerate(plan.encoder_blocks))
    decoder = tuple(1 if s >= finer else count for s, count in enumerate(reversed(plan.decoder_blocks)))
    return encoder, decoder
