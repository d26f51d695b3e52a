"""A layer that reads series in both directions, whatever its mixer.

Dimensions in names: B rows, T steps, D model channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mamba_apps.mixers.attention import usual_heads
from mamba_apps.mixers.registry import create


class BothWaysLayer(nn.Module):
    """A mixer in both directions and a transformation of each step, each on a residual.

    Args:
        mixer: A registered mixer. A causal one reads each way with parameters of its own; attention sees all at once.
        options: That mixer's options. Attention looks both ways and has rotary positions and heads of about 16 channels
            unless they say otherwise.
        d_model: Model channels.
        dropout: Probability of dropping, in [0, 1).
    """

    def __init__(self, mixer: str, options: Mapping[str, Any], d_model: int, dropout: float) -> None:
        super().__init__()
        if mixer == "attention":
            options = {"causal": False, "rotary": True, "heads": usual_heads(d_model, rotary=True), **options}
        ahead = create(mixer, d_model, **options)
        self.mixers = nn.ModuleList([ahead, create(mixer, d_model, **options)] if ahead.causal else [ahead])
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.Dropout(dropout)
        self.ff = nn.Sequential(
            nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * d_model, d_model)
        )

    def forward(self, x_BTD: Tensor, series_BT: Tensor | None = None) -> Tensor:
        """Return the steps (B, T, D) after the layer.

        Args:
            x_BTD: The steps.
            series_BT: Which series each step belongs to, where several are packed into a row; None where a row is one.
        """
        normed_BTD = self.norm1(x_BTD)
        mixed_BTD = self.mixers[0](normed_BTD, seq_idx_BL=series_BT)
        if len(self.mixers) > 1:
            back_BT = None if series_BT is None else series_BT.flip(1)
            mixed_BTD = mixed_BTD + self.mixers[1](normed_BTD.flip(1), seq_idx_BL=back_BT).flip(1)
        x_BTD = x_BTD + self.dropout(mixed_BTD)
        return x_BTD + self.dropout(self.ff(self.norm2(x_BTD)))
