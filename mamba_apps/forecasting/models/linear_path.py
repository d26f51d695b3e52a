"""A linear map from a window to its horizon, solved in closed form and shrunk toward a naive forecast.

Dimensions in names: B batch, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

RIDGES = (1e-4, 1e-2, 0.1, 1.0, 10.0)
_DEFAULT = (0.01, "mean")

Pair = tuple[Tensor, Tensor]
"""Windows less their level (B, L), and their futures less the same level (B, H)."""


class LinearPath(nn.Module):
    """One linear map for all windows, from the past less its level to the future less the same level.

    Until it is solved it forecasts the level. It is a ridge regression, whose penalty pulls toward one of three naive
    forecasts: the level, the last value, or the last season again. Validation chooses which, and how much.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        season: Steps of the season that a naive forecast repeats, at most the lookback.
    """

    def __init__(self, lookback: int, horizon: int, season: int) -> None:
        super().__init__()
        self.season = season
        self.weight_HL: Tensor
        self.register_buffer("weight_HL", torch.zeros(horizon, lookback))

    def forward(self, past_BL: Tensor) -> Tensor:
        """Return the future (B, H), less the level that the past is less of."""
        return past_BL @ self.weight_HL.T

    def solve(self, train: Iterable[Pair], val: Iterable[Pair]) -> None:
        """Take the closed form.

        Args:
            train: Windows to solve for, at least one.
            val: Windows to choose the penalty on; where there are none a hundredth pulls toward the level.
        """
        gram_LL, moment_LH, _, windows = _sums(train, self.weight_HL)
        choices = _sums(val, self.weight_HL)
        eye_LL = torch.eye(len(gram_LL), dtype=torch.float64)
        best = float("inf")
        for ridge in RIDGES:
            for name, naive_LH in self._naive().items():
                if not choices[3] and (ridge, name) != _DEFAULT:
                    continue
                penalty = ridge * windows
                weight_LH = torch.linalg.solve(gram_LL + penalty * eye_LL, moment_LH + penalty * naive_LH)
                # The squared error over the windows that choose, from their sums alone.
                error = choices[2] - 2 * (weight_LH * choices[1]).sum() + (weight_LH * (choices[0] @ weight_LH)).sum()
                if float(error) < best:
                    best, chosen_LH = float(error), weight_LH
        self.weight_HL.copy_(chosen_LH.T)

    def _naive(self) -> dict[str, Tensor]:
        """Return the naive forecasts as weights (L, H)."""
        horizon, lookback = self.weight_HL.shape
        last_LH, season_LH = torch.zeros(2, lookback, horizon, dtype=torch.float64)
        last_LH[-1] = 1
        step_H = torch.arange(horizon)
        season_LH[lookback - self.season + step_H % self.season, step_H] = 1
        return {"mean": torch.zeros_like(last_LH), "last": last_LH, "season": season_LH}


def _sums(pairs: Iterable[Pair], weight_HL: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the sums of x x' (L, L), x y' (L, H) and y' y over windows, and how many these are."""
    horizon, lookback = weight_HL.shape
    gram_LL = torch.zeros(lookback, lookback, dtype=torch.float64)
    moment_LH = torch.zeros(lookback, horizon, dtype=torch.float64)
    square, windows = torch.zeros((), dtype=torch.float64), 0
    for past_BL, future_BH in pairs:
        x_BL, y_BH = past_BL.double().cpu(), future_BH.double().cpu()
        gram_LL += x_BL.T @ x_BL
        moment_LH += x_BL.T @ y_BH
        square += y_BH.square().sum()
        windows += len(x_BL)
    return gram_LL, moment_LH, square, windows
