"""DLinear (Zeng et al., arXiv 2205.13504): one linear map for the trend, one for the rest.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError


class DLinear(nn.Module):
    """DLinear on (B, L, C); both maps begin as the mean of the past.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        moving_average: Steps of the moving average that is the trend, an odd number.
        channels: With ``individual``, the number of variates.
        individual: Whether each variate has its own maps; otherwise they share them.

    Raises:
        UserError: If the moving average is even, or ``individual`` lacks the number of channels.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        moving_average: int = 25,
        channels: int | None = None,
        individual: bool = False,
    ) -> None:
        super().__init__()
        if moving_average < 1 or moving_average % 2 == 0:
            raise UserError(f"dlinear: moving_average is {moving_average}", "give an odd number: it has a middle")
        if individual and not channels:
            raise UserError("dlinear: individual maps need the number of channels", "give channels")
        self.moving_average = moving_average
        self.individual = individual
        sets = (channels or 1) if individual else 1
        self.seasonal = nn.ModuleList(nn.Linear(lookback, horizon) for _ in range(sets))
        self.trend = nn.ModuleList(nn.Linear(lookback, horizon) for _ in range(sets))
        for linear in (*self.seasonal, *self.trend):
            nn.init.constant_(linear.weight, 1 / lookback)

    def forward(self, x_enc_BLC: Tensor) -> Tensor:
        """Forecast the variates (B, L, C), each by itself: (B, H, C).

        Raises:
            UserError: If the maps are individual and made for another number of variates.
        """
        x_BCL = x_enc_BLC.transpose(1, 2)
        if self.individual and x_BCL.shape[1] != len(self.trend):
            raise UserError(
                f"dlinear got {x_BCL.shape[1]} variates, and has individual maps for {len(self.trend)}",
                "give as many variates, or use individual=False",
            )
        side = (self.moving_average - 1) // 2
        trend_BCL = F.avg_pool1d(F.pad(x_BCL, (side, side), mode="replicate"), self.moving_average, stride=1)
        y_BCH = _apply(self.seasonal, x_BCL - trend_BCL) + _apply(self.trend, trend_BCL)
        return y_BCH.transpose(1, 2)


def _apply(maps: nn.ModuleList, x_BCL: Tensor) -> Tensor:
    if len(maps) == 1:
        return maps[0](x_BCL)
    return torch.stack([linear(x_BCL[:, channel]) for channel, linear in enumerate(maps)], dim=1)
