"""Audio Mamba (AuM; Erol et al., arXiv 2406.03344): Vision Mamba on a spectrogram.

Dimensions in names: B batch, T frames, F mel bands, L tokens, D channels of a token.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.layers import to_2tuple
from torch import Tensor

from mamba_apps.audio.live import LiveMamba
from mamba_apps.audio.windows import whole_windows
from mamba_apps.errors import UserError
from mamba_apps.vision.vim_tokens import Grid


class AudioMamba(LiveMamba):
    """Patches of a spectrogram in a line, read by Mamba blocks forwards or from both ends.

    The published variants are options of ``Vim``: Fo-Fo is ``route="forward"``, Fo-Bi ``bimamba_type="v1"`` and Bi-Bi
    the default. With Fo-Fo a class token in front or in the middle does not see what comes after it.

    Args:
        frames: Frames of the clips that learned positions are made for; other clips have them interpolated.
        mels: Mel bands.
        patch_size: Bands and frames of a patch, or one number for both.
        stride: Distance of neighbouring patches in bands and in frames, likewise; None for ``patch_size``.
        num_classes: Classes; 0 for no classifier.
        order: What the line of patches follows first: "frequency" band after band, each through all its time, as the
            released models do, or "time", each moment through all its bands, which live sound needs.
        options: The other arguments of ``Vim``, such as ``embed_dim``, ``class_token``, ``mixer`` and ``route``.

    Raises:
        UserError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        frames: int = 1024,
        mels: int = 128,
        patch_size: int | Grid = 16,
        stride: int | Grid | None = None,
        num_classes: int = 527,
        order: Literal["frequency", "time"] = "frequency",
        **options: Any,
    ) -> None:
        if order not in ("frequency", "time"):
            raise UserError(f"Audio Mamba: order is {order!r}", 'choose "frequency" or "time"')
        if order == "time":
            patch_size, stride = to_2tuple(patch_size)[::-1], None if stride is None else to_2tuple(stride)[::-1]
        super().__init__(
            img_size=(mels, frames) if order == "frequency" else (frames, mels),
            patch_size=patch_size,
            stride=stride,
            num_classes=num_classes,
            **{"in_chans": 1, "dynamic_img_size": True, "pos_resize": "antialiased", **options},
        )
        self.order, self.mels = order, mels

    def _embed(self, x_BTF: Tensor) -> tuple[Tensor, Grid]:
        return super()._embed(self._image(x_BTF))

    def _image(self, x_BTF: Tensor) -> Tensor:
        """Return a spectrogram as Vim's image: rows of one band through time, or of one moment."""
        if x_BTF.dim() != 3 or x_BTF.shape[2] != self.mels:
            raise UserError(
                f"Audio Mamba: the spectrograms have shape {tuple(x_BTF.shape)}",
                f"give (batch, frames, mel bands), {self.mels} bands",
            )
        shortest = self.patch_embed.patch_size[0 if self.order == "time" else 1]
        if x_BTF.shape[1] < shortest:
            raise UserError(
                f"Audio Mamba: the clips have {x_BTF.shape[1]} frames, fewer than a patch's {shortest}",
                "give longer clips, or pad them",
            )
        return (x_BTF if self.order == "time" else x_BTF.mT)[:, None]

    def why_not_live(self) -> str:
        """Return what keeps the model from reading live sound; empty where nothing does."""
        return super().why_not_live() or ("" if self.order == "time" else 'it reads band by band: give order="time"')

    def stem_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return what waits in the stem before the first piece: no frames."""
        return (self.patch_embed.proj.weight.new_zeros(batch_size, 0, self.mels),)

    def stem_step(self, x: Tensor, waiting: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the tokens (B, L, D) that are whole after some frames, L from 0 up, and what waits."""
        (size, _), (stride, _) = self.patch_embed.patch_size, self.patch_embed.stride
        whole_BTF, rest_BTF = whole_windows(torch.cat([waiting[0], x], dim=1), size, stride, dim=1)
        if whole_BTF.shape[1] == 0:
            return whole_BTF.new_zeros(whole_BTF.shape[0], 0, self.embed_dim), (rest_BTF,)
        return self.patch_embed(self._image(whole_BTF)).flatten(2).mT, (rest_BTF,)
