"""The patch forecaster: one shell over time whose mixer is an option.

Patches of the past (target, mask, covariates) and then patches of the future (covariates known ahead) are one
sequence of tokens. The mixer reads it in time order, so that a causal one reaches the future tokens with all of the
past behind it, and one that looks both ways sees the whole; the forecast is read from the future tokens. Everything
but the mixer is the same for every mixer, which makes a comparison of two of them one of mixers.

Dimensions in names: B batch, L lookback, H horizon, P patch length, N past patches, M future patches, T tokens (N + M),
D model channels, X columns of a step, G decoder channels, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.base import Batch, Sizes, increasing, masked_mean
from mamba_apps.forecasting.models.closed_form import BesideClosedForm
from mamba_apps.forecasting.models.encoder import check_options
from mamba_apps.forecasting.models.registry import register
from mamba_apps.mixers import create
from mamba_apps.mixers.attention import usual_heads

_NORMS = ("none", "mean", "standard")


@register("patch")
class PatchForecaster(BesideClosedForm):
    """Patches of the past and of the known future, read in time order by any mixer.

    Args:
        sizes: The shape of the problem.
        mixer: A registered mixer, such as "mamba1" or "attention".
        mixer_options: That mixer's options. Attention looks both ways and has heads of about 16 channels unless they
            say otherwise.
        patch: Steps a patch; None for 24, or the lookback where that is shorter. A season is a good choice.
        d_model: Model channels.
        layers: Number of layers.
        ff: Hidden channels of each layer's transformation, in multiples of ``d_model``; 0 for none.
        dropout: Probability of dropping, in [0, 1).
        norm: What each window is freed of before it is read, and given back after: "none", its "mean", or its mean
            and deviation ("standard"), of the observed steps. "none" relies on the scaling of the whole series.
        seasonal_skip: Whether a weighted sum of the past patches goes straight to the forecast.
        decoder: Channels in which a step's token and its own covariates meet before the forecast.
        closed_form: Whether the forecast lies between the network's and a linear map's in closed form; off, it is the
            network alone.
        quantiles: As in `ForecastModel`.

    Raises:
        UserError: If an option is out of range.
    """

    covariates = frozenset({"past", "future", "static"})

    def __init__(
        self,
        sizes: Sizes,
        *,
        mixer: str = "mamba1",
        mixer_options: Mapping[str, Any] | None = None,
        patch: int | None = None,
        d_model: int = 64,
        layers: int = 2,
        ff: int = 2,
        dropout: float = 0.0,
        norm: str = "mean",
        seasonal_skip: bool = True,
        decoder: int = 32,
        closed_form: bool = False,
        quantiles: Sequence[float] | None = None,
    ) -> None:
        super().__init__(sizes, quantiles)
        check_options("patch", dropout=dropout, d_model=d_model, layers=layers, decoder=decoder)
        patch = min(24, sizes.lookback) if patch is None else patch
        if not 1 <= patch <= sizes.lookback:
            raise UserError(f"patch is {patch} with a lookback of {sizes.lookback}", "give from 1 step to the lookback")
        if norm not in _NORMS:
            raise UserError(f"unknown norm {norm!r}", f"choose one of {', '.join(_NORMS)}")
        self.mixer_name, self.patch, self.norm_kind = mixer, patch, norm
        self.past_tokens, self.future_tokens = -(-sizes.lookback // patch), -(-sizes.horizon // patch)
        self.embed = nn.Linear(patch * (2 + sizes.n_past + sizes.n_future), d_model)
        self.embed_static = nn.Linear(sizes.n_static, d_model) if sizes.n_static else None
        self.position_TD = nn.Parameter(0.02 * torch.randn(self.past_tokens + self.future_tokens, d_model))
        self.dropout = nn.Dropout(dropout)
        # What attention needs to be a fair twin: it may look both ways, with several heads.
        twin = {"causal": False, "heads": usual_heads(d_model, rotary=False)} if mixer == "attention" else {}
        self.layers = nn.ModuleList(
            _PreNormLayer(mixer, {**twin, **(mixer_options or {})}, d_model, ff, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.skip_MN = nn.Parameter(torch.zeros(self.future_tokens, self.past_tokens)) if seasonal_skip else None
        self.decode_token = nn.Linear(d_model, patch * decoder)
        self.decode_step = nn.Linear(sizes.n_future, decoder, bias=False) if sizes.n_future else None
        self.head = nn.Linear(decoder, len(self.quantiles or (0,)))
        if closed_form:
            self.add_closed_form(patch)
            if self.quantiles is not None:
                self.spread_HQ = torch.zeros(sizes.horizon, len(self.quantiles))

    def forward(self, batch: Batch) -> Tensor:
        """Forecast; see `ForecastModel.forward`."""
        observed_BL = batch["past_observed"][..., 0]
        past_BL = batch["past_y"][..., 0].masked_fill(~observed_BL, 0.0)
        shift_B1, scale_B1 = self._statistics(past_BL, observed_BL)
        y_BL = ((past_BL - shift_B1) / scale_B1).masked_fill(~observed_BL, 0.0)
        x_BTD = self.embed(self._tokens(y_BL, batch)) + self.position_TD
        if self.embed_static is not None:
            x_BTD = x_BTD + self.embed_static(batch["static"])[:, None]
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        x_BMD = self.norm(x_BTD[:, self.past_tokens :])
        step_BHG = self._steps(self.decode_token(x_BMD).unflatten(-1, (self.patch, -1)))
        if self.decode_step is not None:
            step_BHG = step_BHG + self.decode_step(batch["future_x"])
        y_BHQ = self.head(F.gelu(step_BHG))
        if self.skip_MN is not None:
            y_BNP = F.pad(y_BL, (self._fill, 0)).unflatten(1, (-1, self.patch))
            y_BHQ = y_BHQ + self._steps((self.skip_MN @ y_BNP)[..., None])
        y_BHQ = self.answered(y_BHQ * scale_B1[..., None] + shift_B1[..., None], past_BL, observed_BL)
        return y_BHQ if self.quantiles is None else increasing(y_BHQ)[:, :, None]

    def _statistics(self, past_BL: Tensor, observed_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shift and scale (B, 1) of each window."""
        zero_B1, one_B1 = past_BL.new_zeros(len(past_BL), 1), past_BL.new_ones(len(past_BL), 1)
        if self.norm_kind == "none":
            return zero_B1, one_B1
        mean_B1 = masked_mean(past_BL, observed_BL, dim=1)
        if self.norm_kind == "mean":
            return mean_B1, one_B1
        return mean_B1, torch.sqrt(masked_mean((past_BL - mean_B1) ** 2, observed_BL, dim=1) + 1e-5)

    def _tokens(self, y_BL: Tensor, batch: Batch) -> Tensor:
        """Return the patches (B, T, P * columns): to the model the horizon is a time that nobody has observed yet."""
        observed_BL1 = batch["past_observed"].to(y_BL.dtype)
        past_BLX = torch.cat([y_BL[..., None], observed_BL1, batch["past_x"]], dim=-1)
        ahead_BHX = F.pad(batch["future_x"], (2 + self.sizes.n_past, 0))
        # Steps before the lookback and after the horizon complete the outer patches, unobserved too.
        before = (0, 0, self._fill, 0)
        after = (0, 0, 0, self.future_tokens * self.patch - self.sizes.horizon)
        return (
            torch.cat([F.pad(past_BLX, before), F.pad(ahead_BHX, after)], dim=1)
            .unflatten(1, (-1, self.patch))
            .flatten(2)
        )

    @property
    def _fill(self) -> int:
        return self.past_tokens * self.patch - self.sizes.lookback

    def _steps(self, x_BMPG: Tensor) -> Tensor:
        """Return the steps of the horizon (B, H, G) out of the future patches."""
        return x_BMPG.flatten(1, 2)[:, : self.sizes.horizon]


class _PreNormLayer(nn.Module):
    def __init__(self, mixer: str, options: Mapping[str, Any], d_model: int, ff: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.mixer = create(mixer, d_model, **options)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model) if ff else None
        self.ff = nn.Sequential(
            nn.Linear(d_model, ff * d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff * d_model, d_model)
        ) if ff else None  # fmt: skip

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.mixer(self.norm1(x_BTD)))
        if self.ff is None or self.norm2 is None:
            return x_BTD
        return x_BTD + self.dropout(self.ff(self.norm2(x_BTD)))
