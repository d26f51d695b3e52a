"""Covariates for forecasters that have no place for them: one learned effect per step, the same for all of them.

A published forecaster sees the past of its variates alone. Here a small network g reads the covariates of one step and
says how much of the target they explain there: a regression with a structured residual,

    forecast = model(past - g(x_past)) + g(x_future).

Steps that were not observed are interpolated in past - g(x_past), so that what they held does not matter and the
covariates still tell what was likely there.

Dimensions in names: B batch, L lookback, H horizon, T steps, F known-future covariates, S static ones, O outputs
(H * Q), Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mamba_apps.forecasting.models.base import Batch, ForecastModel, Sizes, increasing, interpolated


class CovariateEffect(nn.Module):
    """What the known-future and static covariates of a step explain of its target.

    Args:
        sizes: The shape of the problem; F + S is at least 1.
        width: Hidden channels.
    """

    def __init__(self, sizes: Sizes, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(sizes.n_future + sizes.n_static, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x_BTF: Tensor, static_BS: Tensor) -> Tensor:
        """Return the effect (B, T)."""
        if static_BS.shape[-1]:
            x_BTF = torch.cat([x_BTF, static_BS[:, None].expand(-1, x_BTF.shape[1], -1)], dim=-1)
        return self.layers(x_BTF)[..., 0]


class EffectForecaster(ForecastModel):
    """A forecaster of the past alone, with the covariates' effect around it.

    Args:
        sizes: The shape of the problem.
        network: The forecaster of (B, L, 1), with ``outputs(sizes, quantiles)`` steps; where it takes past covariates
            of its own, they come as its second argument (B, L, P + F).
        quantiles: As in `ForecastModel`.
        effect_width: Hidden channels of the effect.
    """

    through_effect = frozenset({"future", "static"})

    def __init__(self, sizes: Sizes, network: nn.Module, quantiles: Sequence[float] | None, effect_width: int) -> None:
        super().__init__(sizes, quantiles)
        self.marks = "past" in self.covariates and sizes.n_past + sizes.n_future > 0
        self.network = network
        self.effect = CovariateEffect(sizes, effect_width) if sizes.n_future + sizes.n_static else None

    def forward(self, batch: Batch) -> Tensor:
        """Forecast; see `ForecastModel.forward`."""
        past_BL, observed_BL = batch["past_y"][..., 0], batch["past_observed"][..., 0]
        ahead_BH = past_BL.new_zeros(1, self.sizes.horizon)
        if self.effect is not None:
            # The past and the horizon go through the network together: one call costs less than two.
            known_BTF = torch.cat([batch["past_x"][..., self.sizes.n_past :], batch["future_x"]], dim=1)
            effect_BT = self.effect(known_BTF, batch["static"])
            past_BL = past_BL - effect_BT[:, : self.sizes.lookback]
            ahead_BH = effect_BT[:, self.sizes.lookback :]
        x_BL1 = interpolated(past_BL, observed_BL)[..., None]
        y_BO = (self.network(x_BL1, batch["past_x"]) if self.marks else self.network(x_BL1))[..., 0]
        if self.quantiles is None:
            return (y_BO + ahead_BH)[..., None]
        y_BHQ = y_BO.unflatten(1, (self.sizes.horizon, -1)) + ahead_BH[..., None]
        return increasing(y_BHQ)[:, :, None]


def outputs(sizes: Sizes, quantiles: Sequence[float] | None) -> int:
    """Return how many steps a network must forecast so that they are H steps of each quantile."""
    return sizes.horizon * (len(quantiles) if quantiles else 1)
