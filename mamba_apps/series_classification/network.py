"""A classifier over series of unequal length, packed one after another into a row, with no padding between them.

Dimensions in names: N series, T steps of all of them, C channels (variates), D model channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mamba_apps.forecasting.models.encoder import check_options
from mamba_apps.mixers import BothWaysLayer


def pack(series: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return series (T, C) each as one row (1, T, C), and which series each of its steps belongs to (1, T)."""
    lengths = torch.tensor([len(one) for one in series])
    x_TC = torch.from_numpy(np.concatenate(series).astype(np.float32))
    return x_TC[None], torch.repeat_interleave(torch.arange(len(series)), lengths)[None]


class SeriesNetwork(nn.Module):
    """Layers of a mixer in both directions, the mean over each series' steps, and a class.

    Args:
        channels: Variates (C).
        classes: How many classes (K).
        mixer: A registered mixer. A causal one reads each way with parameters of its own; attention sees all at once.
        mixer_options: That mixer's options.
        d_model: Model channels.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        d_model: int = 64,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        counts = {"channels": channels, "classes": classes, "d_model": d_model, "layers": layers}
        check_options("the series' classifier", dropout=dropout, **counts)
        self.mean_C: Tensor
        self.std_C: Tensor
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("std_C", torch.ones(channels))
        self.embed = nn.Linear(channels, d_model)
        self.layers = nn.ModuleList(BothWaysLayer(mixer, mixer_options or {}, d_model, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, classes)

    def forward(self, x_1TC: Tensor, series_1T: Tensor) -> Tensor:
        """Return the logits (N, K) of packed series.

        Args:
            x_1TC: Series one after another (1, T, C), at the data's own scale.
            series_1T: Which series each step belongs to, counted from 0 (1, T).
        """
        x_1TD = self.dropout(self.embed((x_1TC - self.mean_C) / self.std_C))
        for layer in self.layers:
            x_1TD = layer(x_1TD, series_1T)
        x_TD, series_T = self.norm(x_1TD)[0], series_1T[0]
        sums_ND = x_TD.new_zeros(int(series_T[-1]) + 1, x_TD.shape[1]).index_add(0, series_T, x_TD)
        return self.head(self.dropout(sums_ND / torch.bincount(series_T)[:, None]))
