"""Vision Mamba's block: the residual block of Mamba's models around Vim's mixer, or another in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import LayerNorm, Mixer, MixerBlock, RMSNorm, RoutedMixer, State, VimMixer, create, spec
from mamba_apps.mixers.routed import Share
from mamba_kernels import Route

LINES = ("forward", "bidirectional")
"""The routes that read tokens in a line; the others read their grid."""


class VimBlock(MixerBlock):
    """The residual block of Mamba's models with a learned scale and stochastic depth on the mixer's output.

    Args:
        mixer: The mixer.
        norm: The norm of its input.
        layer_scale: Where the scale starts; None for none.
        drop_path: Probability of dropping the output in training.
    """

    def __init__(
        self, mixer: Mixer, norm: RMSNorm | LayerNorm, layer_scale: float | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__(mixer, norm)
        self.layer_scale = nn.Identity() if layer_scale is None else LayerScale(mixer.d_model, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, *, seq_idx_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the block; see ``MixerBlock.forward``."""
        hidden, residual = super().forward(hidden, residual, seq_idx_BL=seq_idx_BL)
        return self.drop_path(self.layer_scale(hidden)), residual

    def prefill(self, hidden_BLD: Tensor, residual_BLD: Tensor | None, state: State) -> tuple[Tensor, Tensor, State]:
        """Run the block on several tokens from a state; see ``Mixer.prefill``."""
        hidden_BLD, residual_BLD, state = super().prefill(hidden_BLD, residual_BLD, state)
        return self.drop_path(self.layer_scale(hidden_BLD)), residual_BLD, state


def create_mixer(
    name: str,
    d_model: int,
    route: Route,
    bimamba_type: Literal["v2", "v1"],
    options: Mapping[str, Any],
) -> Mixer:
    """Build the mixer of a block; the arguments are ``Vim``'s, the route with its merge and window.

    Raises:
        UserError: If an option is unknown or out of range, or the mixer does not accept the route.
    """
    if name == "mamba1" and route.name == "bidirectional":
        return VimMixer(d_model, bimamba_type, route.merge == "mean", **options)
    if bimamba_type != "v2":
        raise UserError(
            f"vim: bimamba_type {bimamba_type!r} is a form of the mixer 'mamba1' on the route 'bidirectional'",
            "leave it out, or the other mixer and route",
        )
    if route.name == "forward":
        return create(name, d_model, **options)
    share: Share = "projections" if spec(name).cls.shared_projections else "all"
    return RoutedMixer(lambda: create(name, d_model, **options), route, share, rank=1 if route.name in LINES else 2)
