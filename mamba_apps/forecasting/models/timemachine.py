"""TimeMachine (Ahamed and Cheng, arXiv 2403.09898): four Mambas on two widths of the embedded past.

Each variate's past becomes N1 features, then N2; on each width one Mamba reads the variates' embeddings as they are and
one in the other direction. A linear map of both widths together is the forecast.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates), T tokens, S sequences, N features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.encoder import check_options, instance_statistics
from mamba_apps.mixers import Mamba1Mixer


class TimeMachine(nn.Module):
    """TimeMachine on (B, L, C).

    Where channels are ``independent``, each variate is a sequence of its own: two of the Mambas read its features one
    by one, at width 1, and the other two see a single token, so that their decay rates are without effect. Else the
    variates are the tokens that all four read.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        channels: The number of variates (C), each with a scale and shift of its own.
        n1: Features of the first embedding.
        n2: Features of the second embedding.
        independent: Whether each variate is read by itself.
        d_state: The Mambas' states per channel.
        d_conv: Width of their convolutions.
        expand: Their inner channels per channel.
        dropout: Probability of dropping after each embedding, in [0, 1).
        affine: Whether the instance norm has a learned scale and shift for each variate.
        residual: Whether each embedding is added to what the Mambas make of it.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        channels: int = 1,
        n1: int = 512,
        n2: int = 32,
        independent: bool = True,
        d_state: int = 256,
        d_conv: int = 2,
        expand: int = 1,
        dropout: float = 0.7,
        affine: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_options("timemachine", dropout=dropout, channels=channels, n1=n1, n2=n2)
        self.independent, self.residual = independent, residual
        self.affine = InstanceAffine(channels) if affine else None
        self.embed1 = nn.Linear(lookback, n1)
        self.embed2 = nn.Linear(n1, n2)
        self.dropout = nn.Dropout(dropout)

        def mamba(width: int) -> Mamba1Mixer:
            return Mamba1Mixer(width, d_state=d_state, d_conv=d_conv, expand=expand)

        self.along1, self.along2 = mamba(n1), mamba(n2)
        self.across1, self.across2 = (mamba(1), mamba(1)) if independent else (mamba(n1), mamba(n2))
        self.widen = nn.Linear(n2, n1)
        self.head = nn.Linear(2 * n1, horizon)

    def forward(self, x_enc_BLC: Tensor) -> Tensor:
        """Forecast the variates (B, L, C): (B, H, C).

        Raises:
            UserError: If the model was made for another number of variates.
        """
        batch = len(x_enc_BLC)
        mean_B1C, scale_B1C = instance_statistics(x_enc_BLC)
        x_BLC = (x_enc_BLC - mean_B1C) / scale_B1C.detach()
        x_BCL = (x_BLC if self.affine is None else self.affine(x_BLC)).transpose(1, 2)
        x_STL = x_BCL.flatten(0, 1)[:, None] if self.independent else x_BCL
        first_STN = self.embed1(x_STL)
        x_STN = self.dropout(first_STN)
        wide_STN = self._mixed(x_STN, self.along1, self.across1)
        second_STN = self.embed2(x_STN)
        x_STN = self._mixed(self.dropout(second_STN), self.along2, self.across2)
        x_STN = self.widen(x_STN + second_STN if self.residual else x_STN)
        x_STN = x_STN + first_STN if self.residual else x_STN
        y_STH = self.head(torch.cat([x_STN, wide_STN], dim=-1))
        y_BHC = y_STH.reshape(batch, -1, y_STH.shape[-1]).transpose(1, 2)
        if self.affine is not None:
            y_BHC = self.affine.inverse(y_BHC)
        return y_BHC * scale_B1C.detach() + mean_B1C

    def _mixed(self, x_STN: Tensor, along: nn.Module, across: nn.Module) -> Tensor:
        """Return the sum of two Mambas: one reads the tokens, and the other one too, or a token's features."""
        turned = across(x_STN.transpose(1, 2)).transpose(1, 2) if self.independent else across(x_STN)
        return along(x_STN) + turned


class InstanceAffine(nn.Module):
    """A scale and shift for each variate after the instance norm, and their inverse on the forecast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Scale and shift."""
        if x_BLC.shape[-1] != len(self.weight):
            raise UserError(
                f"timemachine got {x_BLC.shape[-1]} variates, and was made for {len(self.weight)}",
                "give as many variates, or use affine=False",
            )
        return x_BLC * self.weight + self.bias

    def inverse(self, y_BHC: Tensor) -> Tensor:
        """Undo it; the small number keeps the published code's division from failing at a weight of 0."""
        return (y_BHC - self.bias) / (self.weight + 1e-10)
