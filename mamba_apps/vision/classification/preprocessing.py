"""From a decoded image to what a model sees, alike in training's validation and long after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import timm.data
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from mamba_apps.errors import UserError

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """How images are brought to a model's input; its fields are what a saved model remembers.

    Args:
        size: Height and width in pixels.
        interpolation: "bicubic", "bilinear" or "nearest", as timm resizes.
        crop_pct: The part of the resized image's shorter side that the centre crop takes, in (0, 1].
        mean: Of the red, green and blue channels, with values in [0, 1].
        std: Likewise.

    Raises:
        UserError: If a number is out of range.
    """

    size: int = 224
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size is {self.size}", "give the images' height and width in pixels")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct is {self.crop_pct}", "give a part of the image's side in (0, 1]")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise UserError(f"interpolation is {self.interpolation!r}", "use nearest, bilinear or bicubic")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise UserError(f"{name} is {values}", "give three numbers, for red, green and blue")
            object.__setattr__(self, name, values)

    def transform(self) -> Transform:
        """Return what resizes and crops an image to bytes (3, size, size)."""
        resize = timm.data.create_transform(
            self.size, interpolation=self.interpolation, crop_pct=self.crop_pct, use_prefetcher=True
        )
        return as_bytes(resize)

    def normalise(self, x_BCHW: Tensor) -> Tensor:
        """Return images in [0, 255] as the model wants them."""
        mean_C11, std_C11 = (by_channel(tuple(values), x_BCHW.device) for values in (self.mean, self.std))
        return (x_BCHW / 255 - mean_C11) / std_C11


@lru_cache(maxsize=32)
def by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a number for each channel (C, 1, 1); kept, because a copy to a GPU in every step makes it wait."""
    return torch.tensor(values, device=device)[:, None, None]


def as_bytes(transform: Callable[[Image.Image], object]) -> Transform:
    """Return ``transform``, one of timm's that leave normalising to the device, with its result as a tensor."""
    return _AsBytes(transform)


class _AsBytes:
    """A class, and no closure, because workers that are spawned are sent it."""

    def __init__(self, transform: Callable[[Image.Image], object]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.as_tensor(self.transform(image))
