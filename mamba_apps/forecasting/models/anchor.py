"""The anchored forecaster: a network with a sequence mixer, and a linear map in closed form that it answers to.

A window is read relative to its level, the mean of what was observed in it. Closed forms, solved before training, say
where the level goes from there, if anywhere, and forecast the rest by a linear map. A network forecasts the rest too:
by a linear map of its own, and by what a causal mixer makes of the patches of the window (target, mask, covariates),
which are its tokens; from the last token it also reads what the covariates known ahead will change. The forecast lies
halfway between the two, as forecasts that err differently are often better together than either, unless validation
windows clearly say otherwise. In training the network forecasts alone.

Nothing in a token looks ahead: it is relative to the level of the lookback up to its own end. Live, a token ends at
every observation, and as many sequences as a patch has steps take turns, one token each; a step costs one token.

Dimensions in names: B batch, L lookback, H horizon, P patch length, N patches, T steps, X columns of a step, D model
channels, G decoder channels, F known-future covariates, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models.anchor_parts import CausalLayer, Decoder, LiveState, columns_of
from mamba_apps.forecasting.models.base import Batch, Sizes, increasing
from mamba_apps.forecasting.models.closed_form import BesideClosedForm, held, relative
from mamba_apps.forecasting.models.effect import CovariateEffect
from mamba_apps.forecasting.models.encoder import check_options
from mamba_apps.forecasting.models.linear_path import LinearPath
from mamba_apps.forecasting.models.registry import register
from mamba_apps.forecasting.models.rolling import RollingWindow
from mamba_apps.mixers import create
from mamba_apps.mixers.attention import usual_heads

_NORMS = ("mean", "standard")


@register("anchor")
class AnchoredForecaster(BesideClosedForm):
    """A network with any causal mixer over patches, and a linear map in closed form that it answers to.

    Args:
        sizes: The shape of the problem.
        mixer: A registered causal mixer, such as "mamba1", "mamba2" or "attention".
        mixer_options: That mixer's options. Attention has rotary positions and heads of about 16 channels unless they
            say otherwise.
        patch: Steps a patch; None for 24, or the lookback where that is shorter. A season is a good choice.
        d_model: Model channels.
        layers: Number of layers.
        ff: Hidden channels of each layer's transformation, in multiples of ``d_model``.
        dropout: Probability of dropping, in [0, 1).
        norm: Whether patches are freed of their level alone ("mean") or divided by the deviation too ("standard").
        decoder: Channels in which the past and a step's own covariates meet.
        effect_width: Hidden channels of the covariates' effect.
        quantiles: As in `ForecastModel`.

    Raises:
        UserError: If an option is out of range, or the mixer is not causal.
    """

    covariates = frozenset({"past", "future", "static"})
    anchor: LinearPath

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
        dropout: float = 0.2,
        norm: str = "mean",
        decoder: int = 16,
        effect_width: int = 32,
        quantiles: Sequence[float] | None = None,
    ) -> None:
        super().__init__(sizes, quantiles)
        check_options("anchor", dropout=dropout, d_model=d_model, layers=layers, ff=ff, decoder=decoder)
        patch = min(24, sizes.lookback) if patch is None else patch
        if not 1 <= patch <= sizes.lookback:
            raise UserError(f"patch is {patch} with a lookback of {sizes.lookback}", "give from 1 step to the lookback")
        if norm not in _NORMS:
            raise UserError(f"unknown norm {norm!r}", f"choose one of {', '.join(_NORMS)}")
        self.mixer_name, self.patch, self.standard = mixer, patch, norm == "standard"
        self.tokens = -(-sizes.lookback // patch)
        outputs = len(self.quantiles or (0,))
        self.add_closed_form(patch)
        self.effect = CovariateEffect(sizes, effect_width) if sizes.n_future + sizes.n_static else None
        self.embed = nn.Linear(patch * (2 + sizes.n_past + sizes.n_future) + 1, d_model)
        self.embed_static = nn.Linear(sizes.n_static, d_model) if sizes.n_static else None
        # What attention needs to be a fair twin: positions, and several heads.
        twin = {"rotary": True, "heads": usual_heads(d_model, rotary=True)} if mixer == "attention" else {}
        options = {**twin, **(mixer_options or {})}
        self.layers = nn.ModuleList(CausalLayer(create(mixer, d_model, **options), ff, dropout) for _ in range(layers))
        if not all(layer.mixer.causal for layer in self._layers):
            raise UserError(f"anchor needs a causal mixer, and {mixer} with {options} looks ahead", "choose another")
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(sizes.lookback, sizes.horizon)
        self.correct = nn.Linear(d_model, sizes.horizon * outputs)
        self.decode = Decoder(sizes, d_model, decoder, outputs) if sizes.n_future else None
        self.spread_HQ = nn.Parameter(torch.zeros(sizes.horizon, outputs)) if self.quantiles else None
        with torch.no_grad():
            # Training starts near the level.
            self.linear.weight.zero_()
            lasts = [self.correct, *([] if self.effect is None else [self.effect.layers[-1]])]
            for last in lasts + ([] if self.decode is None else [self.decode.head]):
                for parameter in last.parameters():
                    parameter.mul_(0.1)

    def forward(self, batch: Batch) -> Tensor:
        """Forecast; see `ForecastModel.forward`."""
        past_BL, observed_BL, ahead_BH = self._without_effect(batch)
        token_BD = self._read(past_BL, observed_BL, batch)
        return self._finish(past_BL, observed_BL, ahead_BH, token_BD, batch["future_x"])

    def init_state(self, static_BS: Tensor) -> Any:
        """Return the state before the first observation; see `ForecastModel.init_state`.

        A recurrent mixer's state is carried from the first observation on, beyond the lookback. Attention, which would
        have to keep every token, reads the last lookback anew.
        """
        if self.mixer_name == "attention":
            return super().init_state(static_BS)
        shape = len(static_BS), self.patch
        return LiveState(
            RollingWindow.empty(self.sizes, static_BS),
            level_BP=static_BS.new_zeros(shape),
            seen_BP=torch.zeros(shape, dtype=torch.bool, device=static_BS.device),
            layers=[
                [layer.mixer.init_state(len(static_BS), dtype=static_BS.dtype) for layer in self._layers]
                for _ in range(self.patch)
            ],
            token_BD=static_BS.new_zeros(len(static_BS), self.norm.weight.shape[0]),
        )

    @torch.no_grad()
    def step(self, state: Any, y_B: Tensor, observed_B: Tensor, x_BX: Tensor) -> Any:
        """Read one step of each series; see `ForecastModel.step`."""
        if isinstance(state, RollingWindow):
            return super().step(state, y_B, observed_B, x_BX)
        window = state.window
        if self.effect is not None:
            y_B = y_B - self.effect(x_BX[:, None, self.sizes.n_past :], window.static_BS)[:, 0]
        window.append(y_B, observed_B, x_BX)
        past_BL, observed_BL = held(window.past_y_BL1[..., 0], window.past_observed_BL1[..., 0])
        level_B1, scale_B1, seen_B1 = self._statistics(past_BL, observed_BL, slice(-1, None))
        drift_B1 = torch.where(state.seen_BP[:, :1], level_B1 - state.level_BP[:, :1], 0.0)
        state.level_BP = torch.cat([state.level_BP[:, 1:], level_B1], dim=1)
        state.seen_BP = torch.cat([state.seen_BP[:, 1:], seen_B1], dim=1)
        columns_BPX = columns_of(past_BL, observed_BL, window.past_x_BLX)[:, -self.patch :]
        x_BD = self._embed(columns_BPX[:, None], level_B1, scale_B1, drift_B1, window.static_BS)[:, 0]
        turn = state.layers[state.steps % self.patch]
        for place, layer in enumerate(self._layers):
            x_BD, turn[place] = layer.step(x_BD, turn[place])
            for part in turn[place]:
                # What lies before a series' first observation leaves no trace.
                part.masked_fill_(~seen_B1.view(-1, *[1] * (part.dim() - 1)), 0.0)
        state.token_BD = self.norm(x_BD).masked_fill(~seen_B1, 0.0)
        state.steps += 1
        return state

    @torch.no_grad()
    def forecast(self, state: Any, future_x_BHF: Tensor) -> Tensor:
        """Return the forecast after the last step read; see `ForecastModel.forecast`."""
        if isinstance(state, RollingWindow):
            return super().forecast(state, future_x_BHF)
        window = state.window
        past_BL, observed_BL = held(window.past_y_BL1[..., 0], window.past_observed_BL1[..., 0])
        ahead = 0.0 if self.effect is None else self.effect(future_x_BHF, window.static_BS)
        return self._finish(past_BL, observed_BL, ahead, state.token_BD, future_x_BHF)

    @property
    def _layers(self) -> list[CausalLayer]:
        return [cast(CausalLayer, layer) for layer in self.layers]

    def _without_effect(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return the past less the covariates' effect, what of it was observed, and the effect ahead (B, H)."""
        past_BL, observed_BL = batch["past_y"][..., 0], batch["past_observed"][..., 0]
        ahead: Tensor | float = 0.0
        if self.effect is not None:
            known_BTF = torch.cat([batch["past_x"][..., self.sizes.n_past :], batch["future_x"]], dim=1)
            effect_BT = self.effect(known_BTF, batch["static"])
            past_BL = past_BL - effect_BT[:, : self.sizes.lookback]
            ahead = effect_BT[:, self.sizes.lookback :]
        return *held(past_BL, observed_BL), ahead

    def _statistics(self, past_BT: Tensor, observed_BT: Tensor, ends: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return level, scale and whether anything was observed, up to each of some steps, (B, N) each."""
        count_BT = observed_BT.cumsum(1)
        least_BT = count_BT.clamp(min=1)
        known_BT = past_BT.masked_fill(~observed_BT, 0.0)
        level_BT = known_BT.cumsum(1) / least_BT
        scale_BT = torch.ones_like(level_BT)
        if self.standard:
            # Around the last level, where squares lose the fewest digits.
            around_BT = (known_BT - level_BT[:, -1:]).masked_fill(~observed_BT, 0.0)
            mean_BT, square_BT = around_BT.cumsum(1) / least_BT, around_BT.square().cumsum(1) / least_BT
            scale_BT = torch.sqrt((square_BT - mean_BT.square()).clamp(min=0) + 1e-2)
        return level_BT[:, ends], scale_BT[:, ends], count_BT[:, ends] > 0

    def _read(self, past_BL: Tensor, observed_BL: Tensor, batch: Batch) -> Tensor:
        """Return what the last token says (B, D)."""
        fill = self.tokens * self.patch - self.sizes.lookback
        ends = slice(self.patch - 1 - fill, None, self.patch)
        level_BN, scale_BN, seen_BN = self._statistics(past_BL, observed_BL, ends)
        drift_BN = F.pad(torch.where(seen_BN[:, :-1], level_BN.diff(dim=1), 0.0), (1, 0))
        columns_BLX = F.pad(columns_of(past_BL, observed_BL, batch["past_x"]), (0, 0, fill, 0))
        x_BND = self._embed(columns_BLX.unflatten(1, (-1, self.patch)), level_BN, scale_BN, drift_BN, batch["static"])
        seq_idx_BN = torch.where(seen_BN, 0, -1)
        for layer in self._layers:
            x_BND = layer(x_BND, seq_idx_BN)
        return self.norm(x_BND[:, -1]).masked_fill(~seen_BN[:, -1:], 0.0)

    def _embed(
        self, columns_BNPX: Tensor, level_BN: Tensor, scale_BN: Tensor, drift_BN: Tensor, static_BS: Tensor
    ) -> Tensor:
        """Return tokens (B, N, D) of patches whose first columns are the target and whether it is known."""
        y_BNP, known_BNP = columns_BNPX[..., 0], columns_BNPX[..., 1]
        y_BNP = (y_BNP - level_BN[..., None]) / scale_BN[..., None] * known_BNP
        rest_BNZ = columns_BNPX[..., 2:].flatten(2)
        x_BND = self.embed(torch.cat([y_BNP, rest_BNZ, (drift_BN / scale_BN)[..., None]], dim=-1))
        if self.embed_static is not None:
            x_BND = x_BND + self.embed_static(static_BS)[:, None]
        return self.dropout(x_BND)

    def _finish(
        self,
        past_BL: Tensor,
        observed_BL: Tensor,
        ahead: Tensor | float,
        token_BD: Tensor,
        future_x_BHF: Tensor,
    ) -> Tensor:
        level_B1, scale_B1, _ = self._statistics(past_BL, observed_BL, slice(-1, None))
        past_BL = relative(past_BL, observed_BL, level_B1)
        y_BHQ = self.correct(self.dropout(token_BD)).unflatten(1, (self.sizes.horizon, -1))
        y_BHQ = y_BHQ + self.linear(past_BL / scale_B1)[..., None]
        if self.decode is not None:
            y_BHQ = y_BHQ + self.decode(token_BD, future_x_BHF)
        y_BHQ = scale_B1[..., None] * y_BHQ
        if not self.training:
            anchor_BH1 = self.anchor(past_BL)[..., None]
            # Under autocast one of the two is in half precision, which lerp refuses.
            y_BHQ = anchor_BH1 + self.gain * (y_BHQ - anchor_BH1)
            ahead = ahead + self.anchor.drift(level_B1)
        y_BHQ = y_BHQ + (level_B1 + ahead)[..., None]
        if self.spread_HQ is None:
            return y_BHQ
        return increasing(y_BHQ + self.spread_HQ)[:, :, None]
