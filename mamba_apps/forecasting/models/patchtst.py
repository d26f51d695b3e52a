"""PatchTST (Nie et al., arXiv 2211.14730) in the form of the Time-Series-Library.

Each variate is a sequence of its own: overlapping patches are tokens of a post-norm encoder with fixed sinusoidal
positions and a batch norm at its end; one linear head, shared by the variates, reads all tokens.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates), T tokens (patches), P patch length, D model
channels, S sequences (B * C).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.encoder import PostNormLayer, check_options, instance_statistics
from mamba_apps.mixers import AttentionMixer


class PatchTST(nn.Module):
    """PatchTST on (B, L, C).

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        patch: Steps a patch (P), at most ``lookback``.
        stride: Steps between patches; the last value is repeated so often at the end.
        d_model: Model channels (D), an even number.
        d_ff: Hidden channels of each layer's transformation; None for twice ``d_model``.
        heads: Attention heads, a divisor of ``d_model``.
        layers: Number of layers.
        dropout: Probability of dropping, in [0, 1).
        activation: "gelu" or "relu".
        channels: With ``classes``, the number of variates (C).
        classes: Classes that the variates together are told apart into; None to forecast.

    Raises:
        UserError: If the patch does not fit the lookback, ``d_model`` is odd, or ``classes`` lacks the channels.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        patch: int = 16,
        stride: int = 8,
        d_model: int = 64,
        d_ff: int | None = None,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        activation: str = "gelu",
        channels: int | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        d_ff = 2 * d_model if d_ff is None else d_ff
        check_options("patchtst", dropout=dropout, d_model=d_model, d_ff=d_ff, layers=layers)
        if not 1 <= patch <= lookback or stride < 1:
            raise UserError(
                f"patchtst: patches of {patch} steps every {stride} do not fit a lookback of {lookback}",
                "give a patch of at most the lookback, and a stride of at least 1",
            )
        if d_model % 2:
            raise UserError(f"patchtst: d_model is {d_model}", "give an even number: half sines, half cosines")
        if classes and not channels:
            raise UserError("patchtst: classes need the number of variates", "give channels")
        self.patch, self.stride, self.classes = patch, stride, classes
        tokens = (lookback - patch) // stride + 2
        self.embedding = nn.Linear(patch, d_model, bias=False)
        self.register_buffer("position_TD", sinusoid(tokens, d_model), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            PostNormLayer(
                AttentionMixer(d_model, heads=heads, causal=False, qkv_bias=True, bias=True, dropout=dropout),
                d_ff,
                dropout,
                activation,
                mixer_dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.BatchNorm1d(d_model)
        features = d_model * tokens
        self.head = nn.Linear(features * (channels or 1), classes) if classes else nn.Linear(features, horizon)

    def forward(self, x_enc_BLC: Tensor) -> Tensor:
        """Forecast the variates (B, L, C), each by itself: (B, H, C); or return logits (B, classes)."""
        mean_B1C, scale_B1C = instance_statistics(x_enc_BLC)
        x_SL = ((x_enc_BLC - mean_B1C) / scale_B1C).transpose(1, 2).flatten(0, 1)
        x_STP = F.pad(x_SL[:, None], (0, self.stride), mode="replicate")[:, 0].unfold(-1, self.patch, self.stride)
        x_STD = self.dropout(self.embedding(x_STP) + self.position_TD)
        for layer in self.layers:
            x_STD = layer(x_STD)
        x_SDT = self.norm(x_STD.transpose(1, 2))
        if self.classes:
            return self.head(self.dropout(x_SDT.reshape(len(x_enc_BLC), -1)))
        y_SH = self.dropout(self.head(x_SDT.flatten(1)))
        y_BHC = y_SH.unflatten(0, (len(x_enc_BLC), -1)).transpose(1, 2)
        return y_BHC * scale_B1C + mean_B1C


def sinusoid(tokens: int, width: int) -> Tensor:
    """Return the fixed positions of the Transformer paper, (tokens, width): sines in even columns, cosines in odd."""
    angle = torch.arange(tokens)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
