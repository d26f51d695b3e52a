"""Mamba on the waveform itself: strided convolutions down to tokens, and Mamba blocks over them.

Dimensions in names: B batch, S samples, C channels of a convolution, L tokens, D channels of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn

from mamba_apps.audio.live import LiveMamba
from mamba_apps.audio.windows import whole_windows
from mamba_apps.errors import UserError
from mamba_apps.mixers import LayerNorm
from mamba_apps.vision.vim_tokens import Grid, PatchEmbed


class WaveStem(PatchEmbed):
    """Convolutions that see the past only, each twice as wide as its stride, with norm and activation between them.

    Every token stands for the product of the strides in samples and sees about twice as many. It takes sounds as
    images of one row, (B, 1, 1, S), so that it stands where Vim cuts patches.

    Args:
        embed_dim: Channels of a token.
        strides: Strides of the convolutions.
        width: Channels between them.
        backend: The norms' implementation to force; None lets them choose.
    """

    def __init__(self, embed_dim: int, strides: Sequence[int], width: int, backend: str | None = None) -> None:
        if not strides or min(strides) < 1 or width < 1:
            raise UserError(
                f"wave stem: strides are {tuple(strides)}, width is {width}", "give strides such as 5, 4, 4"
            )
        *early, last = strides
        super().__init__(width if early else 1, embed_dim, (1, 2 * last), (1, last))
        self.strides = tuple(strides)
        total = math.prod(strides)
        self.patch_size, self.stride = (1, 2 * total), (1, total)
        # The first has no bias: sound is small, and a bias would drown it ahead of the norm; in silence its gradient
        # would be all there is.
        self.convs = nn.ModuleList(
            nn.Conv2d(width if i else 1, width, (1, 2 * stride), (1, stride), bias=i > 0)
            for i, stride in enumerate(early)
        )
        self.norms = nn.ModuleList(LayerNorm(width, backend=backend) for _ in early)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the convolutions anew."""
        super().reset_parameters()
        for conv in self.convs:
            lecun_normal_(conv.weight)

    def grid(self, img_size: Grid) -> Grid:
        """Return how many tokens sounds of that many samples have, in one row.

        Raises:
            UserError: If they are shorter than a token.
        """
        length = img_size[1] // math.prod(self.strides)
        if length < 1:
            raise UserError(
                f"a sound of {img_size[1]} samples is shorter than a token's {math.prod(self.strides)}",
                "give longer sounds, or smaller strides",
            )
        return 1, length

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens (B, D, 1, L)."""
        return self.step(x_BCHW, self.init_state(x_BCHW.shape[0]))[0]

    def init_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return what waits before each convolution ahead of the first sample: silence, one stride long."""
        layers = [*self.convs, self.proj]
        return tuple(
            layer.weight.new_zeros(batch_size, layer.in_channels, 1, stride)
            for layer, stride in zip(layers, self.strides, strict=True)
        )

    def step(self, x: Tensor, waiting: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the tokens (B, D, 1, L) that are whole after some samples (B, 1, 1, S), and what waits."""
        rests = []
        for i, (layer, stride, waited) in enumerate(zip([*self.convs, self.proj], self.strides, waiting, strict=True)):
            x, rest = whole_windows(torch.cat([waited, x.to(waited.dtype)], dim=-1), 2 * stride, stride)
            rests.append(rest)
            x = layer(x) if x.shape[-1] else x.new_zeros(x.shape[0], layer.out_channels, 1, 0)
            if i < len(self.norms) and x.shape[-1]:
                x = F.gelu(self.norms[i](x.movedim(1, -1))).movedim(-1, 1)
        return x, tuple(rests)


class WaveMamba(LiveMamba):
    """A stem of convolutions and Mamba blocks, from samples to classes.

    Args:
        samples: Samples of the clips; it takes others all the same.
        num_classes: Classes; 0 for no classifier.
        embed_dim: Channels of a token.
        strides: Strides of the stem's convolutions; 5, 4, 4, 2 make 100 tokens of a second at 16 kHz.
        width: Channels between them; None for half of ``embed_dim``.
        causal: Whether nothing looks ahead, so that live sound can be read: ``route="forward"``.
        options: The other arguments of ``Vim``, such as ``depth``, ``class_token`` and ``mixer``. There are no learned
            positions, and no class token unless asked for.

    Raises:
        UserError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        samples: int = 16000,
        num_classes: int = 527,
        embed_dim: int = 192,
        strides: Sequence[int] = (5, 4, 4, 2),
        width: int | None = None,
        causal: bool = False,
        **options: Any,
    ) -> None:
        stem = WaveStem(embed_dim, strides, width or max(1, embed_dim // 2), options.get("backend"))
        fixed = {"img_size": (1, samples), "in_chans": 1, "dynamic_img_size": True, "pos_embed": False}
        route = {"route": "forward"} if causal else {}
        super().__init__(
            num_classes=num_classes,
            embed_dim=embed_dim,
            patch_embed=stem,
            **{"class_token": "none", **route, **options, **fixed},
        )

    def _embed(self, x_BS: Tensor) -> tuple[Tensor, Grid]:
        if x_BS.dim() != 2:
            raise UserError(
                f"wave Mamba: the sounds have shape {tuple(x_BS.shape)}", "give (batch, samples), one channel each"
            )
        return super()._embed(x_BS[:, None, None])

    def stem_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return what waits in the stem before the first piece."""
        return self._stem.init_state(batch_size)

    def stem_step(self, x: Tensor, waiting: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the tokens (B, L, D) that are whole after some samples, L from 0 up, and what waits."""
        token_BD1L, waiting = self._stem.step(x[:, None, None], waiting)
        return token_BD1L.flatten(2).mT, waiting

    @property
    def _stem(self) -> WaveStem:
        assert isinstance(self.patch_embed, WaveStem)  # noqa: S101  for mypy
        return self.patch_embed
