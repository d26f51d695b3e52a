"""The U-Net of nnU-Net (Isensee et al., Nature Methods 2021): plain convolutions, no residuals."""

from __future__ import annotations

from torch import Tensor, nn

from mamba_apps.medical.parts import ConvStage, he_init, transposed_up
from mamba_apps.medical.unet import Decoder, SegmentationNetwork
from mamba_datasets.volumes import NetworkPlan


class PlainUNet(SegmentationNetwork):
    """nnU-Net's plain U-Net: convolution, instance norm and leaky ReLU, strides down and transposed convolutions up.

    Args:
        plan: The sizes; its blocks are convolutions.
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
        widths = (in_channels, *plan.features)
        self.encoder = nn.ModuleList(
            ConvStage(widths[s], widths[s + 1], plan.kernel_sizes[s], plan.encoder_blocks[s], plan.strides[s])
            for s in range(plan.stages)
        )
        self.decoder = Decoder(plan, num_classes, transposed_up, ConvStage, plan.decoder_blocks[::-1])
        self.apply(he_init)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of a checked image; see ``SegmentationNetwork``."""
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return self.decoder(features, self.deep_supervision)
