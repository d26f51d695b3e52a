"""A trained segmenter in a person's hands: pictures in, masks out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from mamba_apps.trained import Trained
from mamba_apps.vision.pictures import as_picture
from mamba_apps.vision.segmentation.network import Segmenter
from mamba_apps.vision.segmentation.saving import load_segmenter


class ImageSegmenter(metaclass=Trained):
    """A trained segmenter of pictures of any size; `ImageSegmenter.load` makes one.

    Args:
        network: The network.
        labels: Names of its classes.
        overlap: The part of a window that the next one covers again.
        short_side: The length that the shorter side of pictures is brought to; None keeps their size.
        device: Where it runs; None takes a GPU where there is one.
    """

    def __init__(
        self,
        network: Segmenter,
        labels: list[str],
        *,
        overlap: float,
        short_side: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network, self.labels = network.to(self.device).eval(), list(labels)
        self.overlap, self.short_side = overlap, short_side

    @classmethod
    def load(cls, directory: str | Path, *, device: torch.device | str | None = None) -> ImageSegmenter:
        """Load a model that training saved.

        Args:
            directory: The saved model's folder, or the folder of the run.
            device: Where it runs; None takes a GPU where there is one.

        Raises:
            UserError: There is no such model, it is damaged, or it does not segment images.
        """
        network, card = load_segmenter(directory)
        return cls(network, list(card.labels or []), device=device, **card.preprocessing)

    @torch.inference_mode()
    def predict(self, image: str | Path | Image.Image) -> np.ndarray:
        """Return the class of each pixel (H, W), uint8.

        Args:
            image: A file, or a PIL image.

        Raises:
            UserError: It is neither.
            DataError: The file is no image, or it is broken.
        """
        picture_3HW = pil_to_tensor(as_picture(image))
        mask = self.network.segment(picture_3HW, overlap=self.overlap, short_side=self.short_side)
        return mask.cpu().numpy()
