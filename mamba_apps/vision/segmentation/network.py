"""The network that segments: pixels in, class scores for each of them out.

Dimensions in names: B batch, K classes, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from mamba_apps.errors import UserError
from mamba_apps.vision.segmentation.augment import IGNORED, PADDING, scaled_size
from mamba_apps.vision.segmentation.pyramid import Pyramid
from mamba_apps.vision.segmentation.sliding import OVERLAP, resized_labels, slide
from mamba_apps.vision.segmentation.upernet import FCNHead, UPerNetHead, upsample

_COARSEST = 32


class Segmenter(nn.Module):
    """A timm backbone with a UPerNet head, for pictures of one size; larger ones are read by `slide`.

    Args:
        backbone: A model in timm's registry.
        classes: Number of classes, from 2 to 255.
        window: Height and width of its input, multiples of 32.
        width: Channels of the head.
        auxiliary: Whether a second head reads the last map but one, for training.
        weights: What the backbone starts from: None, "released", a file or the folder of a classifier that we saved.
        backbone_options: Further arguments of the backbone, such as `drop_path_rate`.

    Raises:
        UserError: If the backbone cannot be used, or a number is out of range.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        window: tuple[int, int] = (512, 512),
        width: int = 512,
        auxiliary: bool = True,
        weights: str | None = None,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 2 <= classes <= IGNORED:
            raise UserError(f"there are {classes} classes", f"give 2 to {IGNORED}; the background is one of them")
        if min(window) < _COARSEST or any(side % _COARSEST for side in window):
            raise UserError(f"the window is {window[0]} x {window[1]}", f"give multiples of {_COARSEST}")
        self.classes, self.width = classes, width
        self.window = (int(window[0]), int(window[1]))
        self.backbone = Pyramid(backbone, self.window, weights=weights, options=backbone_options)
        self.head = UPerNetHead(self.backbone.channels, classes, width=width)
        self.auxiliary = FCNHead(self.backbone.channels[-2], classes, width=width // 2) if auxiliary else None
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.backbone, name)).view(3, 1, 1)
            self.register_buffer(f"{name}_311", values)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the scores (B, K, H, W) of RGB pictures (uint8) of the window's size."""
        return self.scores(images_B3HW)[0]

    def scores(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the scores (B, K, H, W) of each head, the auxiliary one's last."""
        if images_B3HW.shape[-2:] != self.window:
            found = " x ".join(map(str, images_B3HW.shape[-2:]))
            raise UserError(f"the network reads {self.window[0]} x {self.window[1]} pixels, not {found}", "use slide")
        maps = self.backbone((images_B3HW / 255 - self.mean_311) / self.std_311)
        scores = [self.head(maps)]
        if self.auxiliary is not None:
            scores.append(self.auxiliary(maps[-2]))
        return [upsample(score, images_B3HW) for score in scores]

    def segment(
        self, image_3HW: Tensor, *, overlap: float = OVERLAP, short_side: int | None = None, batch_size: int = 8
    ) -> Tensor:
        """Return the most likely class (H, W), uint8, of each pixel of an RGB picture (uint8) of any size.

        Args:
            image_3HW: The picture; it may lie in the memory of another device than the network.
            overlap: The part of a window that the next one covers again.
            short_side: Resize the picture so that its shorter side has this length, and the scores back. All scores
                of the resized picture are then held; without it those of one band of windows.
            batch_size: Windows a call.
        """
        size = image_3HW.shape[-2:]
        resized = image_3HW
        if short_side is not None:
            resized = resize(image_3HW, scaled_size(size, short_side), antialias=True)

        def predict(windows: Tensor) -> Tensor:
            return self(windows.to(self.mean_311.device))

        bands = slide(predict, resized, self.window, overlap=overlap, batch_size=batch_size, fill=PADDING)
        if resized.shape == image_3HW.shape:
            return torch.cat([band.argmax(dim=0).to(torch.uint8) for band in bands])
        return resized_labels(torch.cat(list(bands), dim=1), size).to(torch.uint8)
