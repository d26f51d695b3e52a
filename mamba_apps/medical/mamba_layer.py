"""U-Mamba's layer: the cells of a feature map as tokens, or its channels, through a norm and a sequence mixer.

Dimensions in names: B batch, C channels, L cells of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import LayerNorm, Mixer, RoutedMixer, create, spec
from mamba_apps.mixers.norms import linear_dtype
from mamba_apps.mixers.routed import Share
from mamba_kernels import Route

Precision = Literal["float32", "autocast"]


class MambaLayer(nn.Module):
    """Replace a feature map (B, C, *spatial) by what a mixer makes of it: no residual goes around it.

    Args:
        mixer: Of the cells, in a line or on the grid of a `RoutedMixer`; or with ``channel_tokens`` of the channels.
        channel_tokens: Whether each channel's whole map is one token, so that the mixer is as wide as the map has cells
            and fits no map of another size; otherwise each cell is one token.
        precision: "float32" leaves autocast, as the published code does, so that everything here runs in the
            parameters' precision. Under "autocast" projections run in autocast's, which needs about half the memory;
            the scan itself computes in float32 either way. The result has the input's dtype.

    Raises:
        UserError: If the precision is none of these.
    """

    def __init__(self, mixer: Mixer, channel_tokens: bool = False, precision: Precision = "float32") -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise UserError(f"the precision of a Mamba layer is {precision!r}", f"choose one of {get_args(Precision)}")
        self.channel_tokens, self.precision = channel_tokens, precision
        # Named as in the released weights, whatever the mixer is.
        self.norm = LayerNorm(mixer.d_model, backend=mixer.backend)
        self.mamba = mixer

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map, which lies in memory as ``x`` does."""
        if self.precision == "autocast":
            y = self._mix(x, linear_dtype(x))
        else:
            with torch.autocast(x.device.type, enabled=False):
                y = self._mix(x, self.norm.weight.dtype)
        # Convolutions would mix two layouts otherwise, for which every norm between them makes a copy.
        return y.to(x.dtype, memory_format=torch.contiguous_format if x.is_contiguous() else torch.preserve_format)

    def _mix(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        if self.channel_tokens:
            tokens_BCL = x.flatten(2)
            return self.mamba(self.norm(tokens_BCL, dtype)).view_as(x)
        # A copy unless the channels lie last already: from here on every tensor has them so.
        tokens = x.movedim(1, -1).contiguous()
        normed = self.norm(tokens, dtype)
        if isinstance(self.mamba, RoutedMixer):
            return self.mamba(normed).movedim(-1, 1)
        return self.mamba(normed.flatten(1, -2)).view(tokens.shape).movedim(-1, 1)


def create_mixer(
    name: str, d_model: int, options: Mapping[str, Any], route: Route, share: Share | None, rank: int
) -> Mixer:
    """Build the mixer of a layer.

    Args:
        name: Its registered name.
        d_model: Its width.
        options: Its options.
        route: How it reads the tokens.
        share: What the readings share; None for their projections, or everything where a mixer has none to share.
        rank: Number of axes along which the tokens stand.

    Raises:
        UserError: If an option is unknown or out of range, or the mixer does not accept the route.
    """
    if share is not None and share not in get_args(Share):
        raise UserError(f"share is {share!r}", f"choose one of {get_args(Share)}")
    if route.name == "forward":
        return create(name, d_model, **options)
    if share is None:
        share = "projections" if spec(name).cls.shared_projections else "all"
    return RoutedMixer(lambda: create(name, d_model, **options), route, share, rank)
