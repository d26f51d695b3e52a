"""Augmentation of whole batches on the device that trains: every image of a batch draws its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_apps.errors import UserError
from mamba_apps.vision.classification.preprocessing import by_channel

# At full strength: degrees, and factors about one.
_ROTATION, _SHEAR, _ZOOM, _COLOUR = 30.0, 0.3, 0.3, 0.8
# What the eye takes for brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


class BatchAugment:
    """Random shifts, flips, blank squares and, with a strength, distortions of shape and colour.

    It stands for the crops and RandAugment that timm does image by image, where images are too small and too fast for
    processes to keep up.

    Args:
        shift: Pixels that an image moves at most, up or down and left or right.
        hflip: The probability of a left-right flip.
        distort: From 0 to 1, the strength of random rotation, shear and zoom, brightness, contrast and saturation.
        distorted: The probability that an image's shape is distorted, and that its colours are. Distorted shapes are
            blurred a little; images to be classified are not.
        mirror: Whether what enters at the edges of a moved image mirrors it; else it is black.
        cutout: The side of a square at a random place that is blanked, in pixels (arXiv 1708.04552); 0 for none.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        shift: int = 0,
        hflip: float = 0.0,
        distort: float = 0.0,
        distorted: float = 1.0,
        mirror: bool = False,
        cutout: int = 0,
    ) -> None:
        for name, pixels in (("shift", shift), ("cutout", cutout)):
            if pixels < 0:
                raise UserError(f"{name} is {pixels}", "give a number of pixels, 0 for none")
        for name, value in (("hflip", hflip), ("distort", distort), ("distorted", distorted)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}", "give a number in [0, 1]")
        self.shift, self.hflip, self.distort, self.distorted = shift, hflip, distort, distorted
        self.cutout = cutout
        self._padding = "reflection" if mirror else "zeros"

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Return images with values in [0, 255], changed; numbers are drawn from torch's generator of the device."""
        if self.shift or self.hflip or self.distort:
            theta_B23 = self._movements(x_BCHW)
            where_BHW2 = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
            x_BCHW = F.grid_sample(x_BCHW, where_BHW2, padding_mode=self._padding, align_corners=False)
        if self.distort:
            x_BCHW = self._coloured(x_BCHW)
        return self._cut_out(x_BCHW) if self.cutout else x_BCHW

    def _movements(self, x_BCHW: Tensor) -> Tensor:
        """Return for every image the affine map (2, 3) from a place in the result to its place in the image."""
        B, _, H, W = x_BCHW.shape
        angle, shear, zoom_x, zoom_y = self._around_zero(4, x_BCHW)
        angle = angle * math.radians(_ROTATION)
        cos, sin = torch.cos(angle), torch.sin(angle)
        wide, high = 1 + _ZOOM * zoom_x, 1 + _ZOOM * zoom_y
        flip = 1 - 2 * (torch.rand(B, device=x_BCHW.device) < self.hflip).float()
        steps_B2 = torch.randint(-self.shift, self.shift + 1, (B, 2), device=x_BCHW.device)
        row_x = torch.stack([flip * wide * cos, flip * (_SHEAR * shear - sin), 2 * steps_B2[:, 0] / W], dim=1)
        row_y = torch.stack([sin, high * cos, 2 * steps_B2[:, 1] / H], dim=1)
        return torch.stack([row_x, row_y], dim=1)

    def _coloured(self, x_BCHW: Tensor) -> Tensor:
        brightness, contrast, saturation = (1 + _COLOUR * self._around_zero(3, x_BCHW))[..., None, None, None]
        x_BCHW = x_BCHW * brightness
        grey_B1HW = (x_BCHW * by_channel(_LUMA, x_BCHW.device)).sum(dim=1, keepdim=True)
        x_BCHW = grey_B1HW + saturation * (x_BCHW - grey_B1HW)
        mean_B111 = grey_B1HW.mean(dim=(2, 3), keepdim=True)
        return (mean_B111 + contrast * (x_BCHW - mean_B111)).clamp(0, 255)

    def _cut_out(self, x_BCHW: Tensor) -> Tensor:
        """Fill a square of each image, which may reach over its edge, with the image's mean colour."""
        B, _, H, W = x_BCHW.shape
        inside = []
        for side in (H, W):
            centre_B1 = torch.randint(side, (B, 1), device=x_BCHW.device)
            first_B1 = centre_B1 - self.cutout // 2
            place_S = torch.arange(side, device=x_BCHW.device)
            inside.append((place_S >= first_B1) & (place_S < first_B1 + self.cutout))
        square_B1HW = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
        return torch.where(square_B1HW, x_BCHW.mean(dim=(2, 3), keepdim=True), x_BCHW)

    def _around_zero(self, count: int, x_BCHW: Tensor) -> Tensor:
        """Return so many numbers for each image (count, B), all of them 0 where it is left as it is."""
        drawn_NB = torch.rand(count, len(x_BCHW), device=x_BCHW.device)
        changed_B = torch.rand(len(x_BCHW), device=x_BCHW.device) < self.distorted
        return self.distort * (2 * drawn_NB - 1) * changed_B
