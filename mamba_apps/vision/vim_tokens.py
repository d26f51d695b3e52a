"""Vision Mamba's sequence: patches in row-major order, class tokens among them, and what says where each lies.

Dimensions in names: B batch, L length of the sequence, M patches, T class tokens, D channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import build_rotary_pos_embed, lecun_normal_, resample_patch_embed, to_2tuple
from torch import Tensor, nn

from mamba_apps.errors import UserError

Place = Literal["middle", "front", "end", "double", "none"]
ResizeRule = Literal["grid", "official", "antialiased"]
Grid = tuple[int, int]

# The grid of the rotary positions' unit: on others they are stretched to its extent.
_ROTARY_GRID = [14, 14]


class PatchEmbed(nn.Module):
    """Cut an image into patches, which overlap where the stride is smaller than the patch, and project each.

    Args:
        in_chans: Channels of the image.
        embed_dim: Channels of a token.
        patch_size: Height and width of a patch in pixels, or one number for both.
        stride: Distance of neighbouring patches in pixels, likewise; None for ``patch_size``.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int | Grid, stride: int | Grid | None = None) -> None:
        super().__init__()
        self.patch_size: Grid = to_2tuple(patch_size)
        self.stride: Grid = to_2tuple(stride or patch_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.stride)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the projection anew, as the reference does."""
        lecun_normal_(self.proj.weight)
        self.proj.bias.zero_()  # type: ignore[union-attr]

    @torch.no_grad()
    def set_patch_size(self, patch_size: int | Grid, stride: int | Grid | None = None) -> None:
        """Cut patches of another size from now on, with the projection resized by the pseudo-inverse (FlexiViT)."""
        self.patch_size, self.stride = to_2tuple(patch_size), to_2tuple(stride or patch_size)
        weight = resample_patch_embed(self.proj.weight, list(self.patch_size))
        self.proj.weight = nn.Parameter(weight, self.proj.weight.requires_grad)
        self.proj.kernel_size, self.proj.stride = self.patch_size, self.stride

    def grid(self, img_size: Grid) -> Grid:
        """Return how many patches an image has along each axis; pixels left over at the far edges belong to none.

        Raises:
            UserError: If the image is smaller than a patch.
        """
        height, width = (
            (size - patch) // step + 1 for size, patch, step in zip(img_size, self.patch_size, self.stride, strict=True)
        )
        if min(height, width) < 1:
            raise UserError(
                f"an image of {img_size[0]} x {img_size[1]} pixels is smaller than a patch of "
                f"{self.patch_size[0]} x {self.patch_size[1]}",
                "give larger images, or a model with smaller patches",
            )
        return height, width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the patches (B, D, *grid)."""
        return self.proj(x_BCHW)


class TokenLayout:
    """Where the class tokens stand in the sequence.

    Args:
        place: "middle" before patch M // 2, "front" before the first, "end" after the last, "double" at both ends, or
            "none".
    """

    def __init__(self, place: Place) -> None:
        if place not in ("middle", "front", "end", "double", "none"):
            raise UserError(f"class_token is {place!r}", 'choose "middle", "front", "end", "double" or "none"')
        self.place = place
        self.count = {"none": 0, "double": 2}.get(place, 1)

    def insert(self, patch_BMD: Tensor, class_BTD: Tensor) -> Tensor:
        """Return the sequence (B, M + T, D) of patches and class tokens."""
        if self.count == 0:
            return patch_BMD
        cut = self._before(patch_BMD.shape[1])
        head, tail = class_BTD[:, :1], class_BTD[:, 1:]
        return torch.cat([patch_BMD[:, :cut], head, patch_BMD[:, cut:], tail], dim=1)

    def patches(self, x_BLD: Tensor) -> Tensor:
        """Return the patches (B, M, D) of a sequence."""
        patches = x_BLD.shape[1] - self.count
        cut, after = self._before(patches), min(self.count, 1)
        rest_BMD = x_BLD[:, cut + after : patches + after]
        return torch.cat([x_BLD[:, :cut], rest_BMD], dim=1) if cut else rest_BMD

    def class_tokens(self, x_BLD: Tensor) -> Tensor:
        """Return the class tokens (B, T, D) of a sequence."""
        patches = x_BLD.shape[1] - self.count
        cut = self._before(patches)
        first_BTD = x_BLD[:, cut : cut + min(self.count, 1)]
        return torch.cat([first_BTD, x_BLD[:, -1:]], dim=1) if self.place == "double" else first_BTD

    def _before(self, patches: int) -> int:
        """Return how many patches stand before the first class token."""
        return {"middle": patches // 2, "end": patches}.get(self.place, 0)


def resize_position_embedding(
    embedding_1LD: Tensor, layout: TokenLayout, old: Grid, new: Grid, rule: ResizeRule = "grid"
) -> Tensor:
    """Interpolate learned positions to another grid, by cubic convolution of each channel unless ``rule`` says other.

    Args:
        embedding_1LD: The positions, in the order of the sequence.
        layout: Where the class tokens stand in it; their positions are kept.
        old: The grid it was learned on.
        new: The grid wanted.
        rule: "grid" takes each patch's position where it is. "official" does what Vim's own fine-tuning does: it takes
            the first rows for the class tokens' wherever these stand, so that with one in the middle the patches before
            it are shifted by one. "antialiased" is "grid" with linear interpolation, which averages where the new grid
            is coarser, as Audio Mamba does.

    Returns:
        The positions (1, L', D); the same tensor where the grid does not change.
    """
    if old == new:
        return embedding_1LD
    if rule == "official":
        class_1TD, patch_1MD = embedding_1LD[:, : layout.count], embedding_1LD[:, layout.count :]
    else:
        class_1TD, patch_1MD = layout.class_tokens(embedding_1LD), layout.patches(embedding_1LD)
    patch_1DHW = patch_1MD.mT.unflatten(-1, old).float()
    smooth = rule == "antialiased"
    mode = "bilinear" if smooth else "bicubic"
    resized_1DHW = F.interpolate(patch_1DHW, size=new, mode=mode, align_corners=False, antialias=smooth)
    resized_1MD = resized_1DHW.flatten(2).mT.to(embedding_1LD.dtype)
    if rule == "official":
        return torch.cat([class_1TD, resized_1MD], dim=1)
    return layout.insert(resized_1MD, class_1TD)


def rotary_positions(layout: TokenLayout, grid: Grid, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sine and cosine (L, D) by which a sequence turns: a patch by its row and column, a class token not at all.

    The first half of the channels turns with the row and the second with the column, in pairs of neighbours.
    """
    angles = build_rotary_pos_embed(
        list(grid), dim=channels, in_pixels=False, ref_feat_shape=_ROTARY_GRID, device=device
    )
    sin_LD, cos_LD = (
        layout.insert(angle_MD[None], torch.full((1, layout.count, channels), still, device=device))[0]
        for angle_MD, still in zip(angles, (0.0, 1.0), strict=True)
    )
    return sin_LD, cos_LD
