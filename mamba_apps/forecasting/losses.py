"""Losses and scores of forecasts, over what was observed only.

Dimensions in names: B batch, H horizon, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from mamba_apps.errors import UserError

LOSSES = ("mae", "mse", "huber")


class MaskedLoss:
    """The mean loss of a batch over its observed steps; 0 where none is.

    Args:
        kind: "mae", "mse", or "huber" (squared up to a fifth of a standard deviation, linear above).
        quantiles: Probabilities of the forecast's last dimension. The loss is then the pinball loss, twice over and
            averaged over the quantiles, so that the median alone gives the MAE.

    Raises:
        UserError: If the kind is unknown, or quantiles come with another kind than "mae".
    """

    def __init__(self, kind: str = "mae", quantiles: Sequence[float] | None = None) -> None:
        if kind not in LOSSES:
            raise UserError(f"unknown loss {kind!r}", f"choose one of {', '.join(LOSSES)}")
        if quantiles is not None and kind != "mae":
            raise UserError(
                f"the loss {kind!r} does not go with quantiles", 'use "mae", which becomes the pinball loss'
            )
        self.kind = kind
        self.quantiles = None if quantiles is None else tuple(quantiles)
        self._levels_Q = torch.tensor(self.quantiles or ())

    def __call__(self, forecast: Tensor, target_BH1: Tensor, observed_BH1: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            forecast: (B, H, 1), or (B, H, 1, Q) for quantiles.
            target_BH1: The target; where it was not observed its value does not matter.
            observed_BH1: bool, whether the target counts.
        """
        target_BH1 = target_BH1.masked_fill(~observed_BH1, 0.0)
        if self.quantiles is not None:
            error = target_BH1[..., None] - forecast
            # Kept where it was used last: a copy at every step would make the host wait for the device.
            levels_Q = self._levels_Q = self._levels_Q.to(error)
            each = 2 * torch.maximum(levels_Q * error, (levels_Q - 1) * error).mean(dim=-1)
        elif self.kind == "mae":
            each = (forecast - target_BH1).abs()
        elif self.kind == "mse":
            each = (forecast - target_BH1) ** 2
        else:
            each = F.huber_loss(forecast.to(target_BH1.dtype), target_BH1, reduction="none", delta=0.2)
        # Differences have the target's precision, also where the forecast was made in half of it.
        weight_BH1 = observed_BH1.to(each.dtype)
        return (each * weight_BH1).sum() / weight_BH1.sum().clamp(min=1)


class MaskedErrors(Metric):
    """Mean absolute and root mean squared error over all observed steps of all windows, in the unit of the targets."""

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor, observed: Tensor) -> None:
        """Add windows.

        Args:
            forecast: Point forecasts, any shape.
            target: Targets of the same shape.
            observed: bool of the same shape, whether a target counts.
        """
        error = (forecast - target)[observed].double()
        self.total += error.abs().sum()
        self.squares += (error * error).sum()
        self.count += error.numel()

    def compute(self) -> dict[str, Tensor]:
        """Return "mae" and "rmse"; NaN where nothing was observed."""
        return {"mae": self.total / self.count, "rmse": torch.sqrt(self.squares / self.count)}


def point_forecast(forecast: Tensor, quantiles: Sequence[float] | None) -> Tensor:
    """Return the point forecast (B, H, 1): the forecast itself, or the quantile nearest to the median."""
    if quantiles is None:
        return forecast
    nearest = min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - 0.5))
    return forecast[..., nearest]
