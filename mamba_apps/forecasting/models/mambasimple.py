"""The Time-Series-Library's MambaSimple: Mamba over time, each encoded step of the past a step of the forecast.

It reads every variate of a step as one token, and the last H encoded steps are the forecast: it never sees a token of
the future, and needs a lookback of at least the horizon.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates), M time marks, D model channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.encoder import check_options, instance_statistics
from mamba_apps.forecasting.models.patchtst import sinusoid
from mamba_apps.mixers import Mamba1Mixer
from mamba_apps.mixers.norms import RMSNorm


class MambaSimple(nn.Module):
    """MambaSimple on (B, L, C).

    Args:
        lookback: Steps of the past (L), at least ``horizon``.
        horizon: Steps to forecast (H).
        channels: The number of variates (C).
        marks: The number of time marks (M) that are embedded beside the variates; 0 for none.
        d_model: Model channels (D), an even number.
        d_state: The Mambas' states per channel.
        d_conv: Width of their convolutions.
        expand: Their inner channels per channel.
        layers: Number of layers.
        dropout: Probability of dropping the embedding, in [0, 1).

    Raises:
        UserError: If the horizon is longer than the lookback, or another option is out of range.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        channels: int = 1,
        marks: int = 0,
        d_model: int = 128,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_options("mambasimple", dropout=dropout, channels=channels, d_model=d_model, layers=layers)
        if horizon > lookback:
            raise UserError(
                f"mambasimple: the horizon of {horizon} steps is longer than the lookback of {lookback}",
                "give a lookback of at least the horizon: its forecast is as many encoded steps of the past",
            )
        if d_model % 2:
            raise UserError(f"mambasimple: d_model is {d_model}", "give an even number: half sines, half cosines")
        self.horizon = horizon
        # Each step is embedded with its two neighbours, around the window's ends.
        self.embedding = nn.Conv1d(channels, d_model, 3, padding=1, padding_mode="circular", bias=False)
        self.mark_embedding = nn.Linear(marks, d_model, bias=False) if marks else None
        self.register_buffer("position_LD", sinusoid(lookback, d_model), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(RMSNorm(d_model) for _ in range(layers))
        self.mixers = nn.ModuleList(
            Mamba1Mixer(d_model, d_state=d_state, d_conv=d_conv, expand=expand) for _ in range(layers)
        )
        self.norm = RMSNorm(d_model)
        self.head = nn.Linear(d_model, channels, bias=False)

    def forward(self, x_enc_BLC: Tensor, x_mark_enc_BLM: Tensor | None = None) -> Tensor:
        """Forecast the variates (B, L, C) from them and the past of the time marks: (B, H, C)."""
        mean_B1C, scale_B1C = instance_statistics(x_enc_BLC)
        x_BLC = (x_enc_BLC - mean_B1C) / scale_B1C
        x_BLD = self.embedding(x_BLC.transpose(1, 2)).transpose(1, 2) + self.position_LD
        if self.mark_embedding is not None and x_mark_enc_BLM is not None:
            x_BLD = x_BLD + self.mark_embedding(x_mark_enc_BLM)
        x_BLD = self.dropout(x_BLD)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x_BLD = x_BLD + mixer(norm(x_BLD))
        y_BHC = self.head(self.norm(x_BLD[:, -self.horizon :]))
        return y_BHC * scale_B1C + mean_B1C
