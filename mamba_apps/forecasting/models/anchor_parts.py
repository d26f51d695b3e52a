"""What the anchored forecaster is made of: its layers, its decoder, the columns of its tokens, its live state.

Dimensions in names: B batch, L lookback, H horizon, P patch length, N patches, T steps, X columns of a step, D model
channels, G decoder channels, F known-future covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.forecasting.models.base import Sizes
from mamba_apps.forecasting.models.rolling import RollingWindow
from mamba_apps.mixers import Mixer
from mamba_apps.mixers.base import State


@dataclass
class LiveState:
    """What a live forecast remembers of each series.

    Args:
        window: The last lookback, its targets less the covariates' effect.
        level_BP: The level after each of the last P steps.
        seen_BP: bool, whether anything had been observed by then.
        layers: For each of the P sequences that take turns, the state of each layer.
        token_BD: What the last token says.
        steps: How many steps were read.
    """

    window: RollingWindow
    level_BP: Tensor
    seen_BP: Tensor
    layers: list[list[State]]
    token_BD: Tensor
    steps: int = 0


class Decoder(nn.Module):
    """What the past makes of the covariates of each step of the horizon.

    Args:
        sizes: The shape of the problem.
        d_model: Model channels.
        decoder: Channels in which both meet.
        outputs: Numbers a step.
    """

    def __init__(self, sizes: Sizes, d_model: int, decoder: int, outputs: int) -> None:
        super().__init__()
        self.past = nn.Linear(d_model, decoder)
        self.ahead = nn.Linear(sizes.n_future, decoder, bias=False)
        self.step_HG = nn.Parameter(0.02 * torch.randn(sizes.horizon, decoder))
        self.head = nn.Linear(decoder, outputs, bias=False)

    def forward(self, token_BD: Tensor, future_x_BHF: Tensor) -> Tensor:
        """Return what is added to the forecast (B, H, outputs)."""
        return self.head(F.gelu(self.ahead(future_x_BHF) + self.past(token_BD)[:, None] + self.step_HG))


class CausalLayer(nn.Module):
    """A causal mixer and a transformation of each token, each on a residual, at once or step by step.

    Args:
        mixer: The mixer.
        ff: Hidden channels of the transformation, in multiples of the mixer's.
        dropout: Probability of dropping, in [0, 1).
    """

    def __init__(self, mixer: Mixer, ff: int, dropout: float) -> None:
        super().__init__()
        width = mixer.d_model
        self.norm1, self.mixer, self.norm2 = nn.LayerNorm(width), mixer, nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.ff = nn.Sequential(
            nn.Linear(width, ff * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff * width, width)
        )

    def forward(self, x_BND: Tensor, seq_idx_BN: Tensor) -> Tensor:
        """Return the tokens (B, N, D) after the layer."""
        x_BND = x_BND + self.dropout(self.mixer(self.norm1(x_BND), seq_idx_BL=seq_idx_BN))
        return x_BND + self.dropout(self.ff(self.norm2(x_BND)))

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Return one token (B, D) after the layer, and the mixer's state after it."""
        y_BD, state = self.mixer.step(self.norm1(x_BD), state)
        x_BD = x_BD + y_BD
        return x_BD + self.ff(self.norm2(x_BD)), state


def columns_of(past_BT: Tensor, observed_BT: Tensor, x_BTX: Tensor) -> Tensor:
    """Return each step's columns: target, whether anything is known of it, whether it was observed, the rest."""
    known_BT1 = (observed_BT.cumsum(1) > 0)[..., None].to(past_BT.dtype)
    return torch.cat([past_BT[..., None], known_BT1, observed_BT[..., None].to(past_BT.dtype), x_BTX], dim=-1)
