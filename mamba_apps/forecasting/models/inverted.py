"""Inverted forecasters: a whole series is one token, and a mixer reads across the series.

iTransformer (Liu et al., arXiv 2310.06625) mixes by attention, S-Mamba (Wang et al., arXiv 2403.11144) by two Mambas,
one for each direction; the rest is the same.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates), M time marks, T tokens (C + M), D model
channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mamba_apps.forecasting.models.encoder import PostNormLayer, check_options, instance_statistics
from mamba_apps.mixers import AttentionMixer, Mamba1Mixer, Mixer, RoutedMixer


class Inverted(nn.Module):
    """The shell of inverted forecasters.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        mixer: Makes one layer's mixer over (B, T, D).
        d_model: Model channels (D).
        d_ff: Hidden channels of each layer's transformation.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        mixer_dropout: Probability of dropping a mixer's output.
        activation: "gelu" or "relu".
        use_norm: Whether each window is normalised by its own mean and deviation.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        mixer: Callable[[], Mixer],
        *,
        d_model: int,
        d_ff: int,
        layers: int,
        dropout: float,
        mixer_dropout: float,
        activation: str,
        use_norm: bool,
    ) -> None:
        super().__init__()
        check_options(type(self).__name__, dropout=dropout, d_model=d_model, d_ff=d_ff, layers=layers)
        self.use_norm = use_norm
        self.embedding = nn.Linear(lookback, d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            PostNormLayer(mixer(), d_ff, dropout, activation, mixer_dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.projector = nn.Linear(d_model, horizon)

    def forward(self, x_enc_BLC: Tensor, x_mark_enc_BLM: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            x_enc_BLC: The past of the variates.
            x_mark_enc_BLM: The past of time marks or other covariates: further tokens, cut off before the end.

        Returns:
            (B, H, C).
        """
        variates = x_enc_BLC.shape[-1]
        if self.use_norm:
            mean_B1C, scale_B1C = instance_statistics(x_enc_BLC)
            x_enc_BLC = (x_enc_BLC - mean_B1C) / scale_B1C
        tokens_BTL = x_enc_BLC if x_mark_enc_BLM is None else torch.cat([x_enc_BLC, x_mark_enc_BLM], dim=-1)
        x_BTD = self.dropout(self.embedding(tokens_BTL.transpose(1, 2)))
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        y_BHC = self.projector(self.norm(x_BTD)).transpose(1, 2)[..., :variates]
        return y_BHC * scale_B1C + mean_B1C if self.use_norm else y_BHC


class SMamba(Inverted):
    """S-Mamba: a Mamba in each direction over the variates, their outputs added.

    Its forecast depends on the order of the variates. With a single variate and no marks a scan has one step.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        d_model: Model channels (D).
        d_ff: Hidden channels of each layer's transformation; None for ``d_model``.
        d_state: The Mambas' states per channel.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1); the sum of the Mambas is never dropped.
        activation: "gelu" or "relu".
        use_norm: Whether each window is normalised by its own mean and deviation.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        d_model: int = 128,
        d_ff: int | None = None,
        d_state: int = 16,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        use_norm: bool = True,
    ) -> None:
        def direction() -> Mixer:
            return Mamba1Mixer(d_model, d_state=d_state, d_conv=2, expand=1)

        super().__init__(
            lookback,
            horizon,
            lambda: RoutedMixer(direction, "bidirectional", share="none"),
            d_model=d_model,
            d_ff=d_model if d_ff is None else d_ff,
            layers=layers,
            dropout=dropout,
            mixer_dropout=0.0,
            activation=activation,
            use_norm=use_norm,
        )


class ITransformer(Inverted):
    """iTransformer: attention over the variates; their order does not matter to it.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        d_model: Model channels (D).
        d_ff: Hidden channels of each layer's transformation; None for ``d_model``.
        heads: Attention heads, a divisor of ``d_model``.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        activation: "gelu" or "relu".
        use_norm: Whether each window is normalised by its own mean and deviation.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        d_model: int = 128,
        d_ff: int | None = None,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        use_norm: bool = True,
    ) -> None:
        super().__init__(
            lookback,
            horizon,
            lambda: AttentionMixer(d_model, heads=heads, causal=False, qkv_bias=True, bias=True, dropout=dropout),
            d_model=d_model,
            d_ff=d_model if d_ff is None else d_ff,
            layers=layers,
            dropout=dropout,
            mixer_dropout=dropout,
            activation=activation,
            use_norm=use_norm,
        )
