"""A network that reads a window of a multivariate series both ways and fills what is missing in it.

Dimensions in names: B windows, L steps, C variates, K columns that are always known, D model channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.base import interpolated
from mamba_apps.forecasting.models.encoder import check_options
from mamba_apps.mixers import BothWaysLayer


class ImputationNetwork(nn.Module):
    """Layers of a mixer in both directions, which learn what a straight line through each gap leaves.

    Args:
        variates: Variates (C).
        known: Columns that are always known (K), such as the calendar's.
        mixer: A registered mixer; see `BothWaysLayer`.
        mixer_options: That mixer's options.
        d_model: Model channels.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        variates: int,
        known: int,
        *,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        d_model: int = 64,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_options("imputation", dropout=dropout, variates=variates, d_model=d_model, layers=layers)
        if known < 0:
            raise UserError(f"imputation: known is {known!r}", "give at least 0")
        self.embed = nn.Linear(2 * variates + known, d_model)
        self.layers = nn.ModuleList(BothWaysLayer(mixer, mixer_options or {}, d_model, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, variates)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, y_BLC: Tensor, seen_BLC: Tensor, known_BLK: Tensor) -> Tensor:
        """Return a value for every step (B, L, C); before training, a straight line through each gap.

        Args:
            y_BLC: Scaled values; what one holds that is not seen does not matter.
            seen_BLC: bool, which of them the network may see.
            known_BLK: What is known of every step; K may be 0.
        """
        # Each variate of each window is a row of its own to the lines.
        y_RL, seen_RL = (x_BLC.transpose(1, 2).flatten(0, 1) for x_BLC in (y_BLC, seen_BLC))
        line_BLC = interpolated(y_RL, seen_RL).unflatten(0, (len(y_BLC), -1)).transpose(1, 2)
        x_BLD = self.embed(torch.cat([line_BLC, seen_BLC.to(line_BLC.dtype), known_BLK], dim=-1))
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        return line_BLC + self.head(self.norm(x_BLD))
