"""The post-norm encoder that S-Mamba, iTransformer and PatchTST share, and the instance norm around them.

Dimensions in names: B batch, L lookback, C channels (variates), T tokens, D model channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import Mixer

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def check_options(model: str, *, dropout: float, **counts: int) -> None:
    """Refuse options that no network can have.

    Args:
        model: The model's name, for the error.
        dropout: A probability.
        counts: Whole numbers of at least 1, by name.

    Raises:
        UserError: One is out of range.
    """
    if not 0 <= dropout < 1:
        raise UserError(f"{model}: dropout is {dropout}", "give a probability in [0, 1)")
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{model}: {name} is {value!r}", "give a whole number of at least 1")


class PostNormLayer(nn.Module):
    """Mix the tokens, add, normalise; transform each token, add, normalise.

    Args:
        mixer: Mixes the tokens.
        d_ff: Hidden channels of the transformation.
        dropout: Probability of dropping inside the transformation, in [0, 1).
        activation: "gelu" or "relu".
        mixer_dropout: Probability of dropping the mixer's output.

    Raises:
        UserError: If the activation is unknown.
    """

    def __init__(self, mixer: Mixer, d_ff: int, dropout: float, activation: str, mixer_dropout: float) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}", f"choose {' or '.join(_ACTIVATIONS)}")
        self.mixer = mixer
        self.activation = _ACTIVATIONS[activation]
        self.ff_in = nn.Linear(mixer.d_model, d_ff)
        self.ff_out = nn.Linear(d_ff, mixer.d_model)
        self.norm1 = nn.LayerNorm(mixer.d_model)
        self.norm2 = nn.LayerNorm(mixer.d_model)
        self.dropout = nn.Dropout(dropout)
        self.mixer_dropout = nn.Dropout(mixer_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the tokens (B, T, D) after the layer."""
        x_BTD = self.norm1(x_BTD + self.mixer_dropout(self.mixer(x_BTD)))
        y_BTD = self.dropout(self.activation(self.ff_in(x_BTD)))
        return self.norm2(x_BTD + self.dropout(self.ff_out(y_BTD)))


def instance_statistics(x_BLC: Tensor) -> tuple[Tensor, Tensor]:
    """Return each window's mean and standard deviation over time, (B, 1, C) each.

    As in the published code, the variance is the biased one plus 1e-5, and no gradient flows through the mean that
    the forecast is shifted back by.
    """
    mean_B1C = x_BLC.mean(dim=1, keepdim=True).detach()
    return mean_B1C, torch.sqrt((x_BLC - mean_B1C).var(dim=1, keepdim=True, unbiased=False) + 1e-5)
