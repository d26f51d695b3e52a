"""What happens to a picture and its mask together before they are learned from.

Resizing and cropping draw once for both, as torchvision's transforms do: a mask is resized by nearest neighbours, and
padded with the label that no loss counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mamba_apps.errors import UserError

IGNORED = 255
PADDING = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)
_TRIES = 10


class RandomScale(v2.Transform):
    """Resize by a random factor, both sides alike.

    Args:
        scale: The least and the greatest factor.
        short_side: Where given, the factor is one of this length of the shorter side.

    Raises:
        UserError: If the factors are no range above 0.
    """

    def __init__(self, scale: Sequence[float], short_side: int | None = None) -> None:
        super().__init__()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"scale is {list(scale)}", "give the least and the greatest factor, such as [0.5, 2.0]")
        self.scale, self.short_side = (float(scale[0]), float(scale[1])), short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size."""
        factor = float(torch.empty(()).uniform_(*self.scale))
        return {"size": scaled_size(v2.query_size(flat_inputs), self.short_side, factor)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize a picture or a mask."""
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


class RandomTranspose(v2.Transform):
    """Exchange rows and columns of both, half of the time; with both flips every quarter turn comes about."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw whether to."""
        return {"exchange": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Transpose a picture or a mask."""
        return tv_tensors.wrap(inpt.transpose(-1, -2), like=inpt) if params["exchange"] else inpt


class RandomCrop(v2.RandomCrop):
    """Crop at random, where no class fills the crop if such a place is found soon; small pictures are padded.

    Args:
        size: Height and width.
        most: The largest share of a class among the crop's labelled pixels, in (0, 1]; 1 takes the first place.
    """

    def __init__(self, size: Sequence[int], most: float = 1.0) -> None:
        fill: dict[Any, Any] = {tv_tensors.Image: list(PADDING), tv_tensors.Mask: IGNORED}
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the place."""
        mask = next(value for value in flat_inputs if isinstance(value, tv_tensors.Mask))
        for _ in range(_TRIES):
            params: dict[str, Any] = super().make_params(flat_inputs)
            if self.most >= 1 or self._largest_share(mask, params) < self.most:
                break
        return params

    @staticmethod
    def _largest_share(mask: Tensor, params: dict[str, Any]) -> float:
        top, left = params["top"] - params["padding"][1], params["left"] - params["padding"][0]
        rows = slice(max(top, 0), max(top + params["height"], 0))
        crop = mask[..., rows, max(left, 0) : max(left + params["width"], 0)]
        _, counts = crop[crop != IGNORED].unique(return_counts=True)
        return float(counts.max() / counts.sum()) if len(counts) else 1.0


def training_transform(
    crop: Sequence[int],
    *,
    scale: Sequence[float] = (0.5, 2.0),
    short_side: int | None = None,
    most: float = 1.0,
    vertical_flip: bool = False,
    turn: bool = False,
    photometric: bool = True,
) -> v2.Transform:
    """Return the usual chain: random scale, crop and flips of both, and brightness, contrast, colour of the picture.

    Args:
        crop: Height and width of what is learned from.
        scale: The least and the greatest factor.
        short_side: Where given, the factor is one of this length of the shorter side.
        most: The largest share of a class in a crop.
        vertical_flip: Whether to flip upside down too, for pictures without an up.
        turn: Whether to exchange rows and columns too, likewise.
        photometric: Whether to change brightness, contrast and colour.
    """
    chain: list[v2.Transform] = [RandomScale(scale, short_side), *([RandomTranspose()] if turn else [])]
    chain += [RandomCrop(crop, most), v2.RandomHorizontalFlip()]
    chain += [v2.RandomVerticalFlip()] if vertical_flip else []
    chain += [v2.RandomPhotometricDistort()] if photometric else []
    return v2.Compose(chain)


def scaled_size(size: Sequence[int], short_side: int | None, factor: float = 1.0) -> list[int]:
    """Return a height and width times ``factor``, the shorter first brought to ``short_side`` where that is given."""
    if short_side is not None:
        factor *= short_side / min(size)
    return [max(round(side * factor), 1) for side in size]
