"""A linear map from a window to its horizon, solved in closed form, with its penalties chosen to be safe.

Dimensions in names: B batch, L lookback, H horizon, D columns (the lookback and the level).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FOLDS = 6
_RIDGE = 0.01
_RIDGES = (_RIDGE, 0.1, 1.0, 10.0)
_PULLS = (10.0, 3.0, 1.0, 0.3, 0.1)
_FREE = 1e9

Choice = tuple[float, str, float]
"""How much pulls toward a naive forecast, which one, and how much holds the level back from doing anything."""

Windows = tuple[Tensor, Tensor, Tensor]
"""Windows less their level (B, L), these levels (B, 1), and their futures less the same levels (B, H)."""


@dataclass(frozen=True)
class _Sums:
    """What squared errors over windows need to know of them: x x' (D, D), x y' (D, H), y y', and how many there are."""

    gram_DD: Tensor
    moment_DH: Tensor
    square: Tensor
    windows: int

    @classmethod
    def of(cls, past_BL: Tensor, level_B1: Tensor, future_BH: Tensor) -> _Sums:
        x_BD, y_BH = torch.cat([past_BL, level_B1], dim=1).double(), future_BH.double()
        return cls(x_BD.T @ x_BD, x_BD.T @ y_BH, y_BH.square().sum(), len(x_BD))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def error(self, weight_DH: Tensor) -> float:
        """Return the sum of squared errors of a linear map over these windows."""
        return float(
            self.square - 2 * (weight_DH * self.moment_DH).sum() + (weight_DH * (self.gram_DD @ weight_DH)).sum()
        )


class LinearPath(nn.Module):
    """One linear map for all windows, from the past and its level to the future less that level.

    Until it is solved it forecasts the level. It is a ridge regression with two penalties. One pulls the map toward a
    naive forecast: the level, the last value or the last season again. The other is on what the level itself does to
    the forecast, such as a return to the long-run mean, which misleads most where the future is unlike the past.

    Both start where they change least, a hundredth toward the level and a level that does nothing. Others are taken if
    they are no worse in any period: each sixth of the training windows, left out in turn, and the validation windows.
    Where a stronger pull toward the last value is, ``wanders`` says so: the past tells little beyond it.

    Args:
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        season: Steps of the season that a naive forecast repeats, at most the lookback.
    """

    def __init__(self, lookback: int, horizon: int, season: int) -> None:
        super().__init__()
        self.season = season
        self.weight_HD: Tensor
        self.register_buffer("weight_HD", torch.zeros(horizon, lookback + 1))
        self.wanders: Tensor
        self.register_buffer("wanders", torch.tensor(False))

    def forward(self, past_BL: Tensor) -> Tensor:
        """Return what a window less its level tells of its future less that level (B, H)."""
        return past_BL @ self.weight_HD[:, :-1].T

    def drift(self, level_B1: Tensor) -> Tensor:
        """Return where a level goes from where it is (B, H)."""
        return level_B1 * self.weight_HD[:, -1]

    def solve(self, train: Windows, val: Windows | None) -> None:
        """Take the closed form.

        Args:
            train: At least one window to solve for, in the order of time.
            val: Windows of a later period, if there are any.
        """
        folds = [_Sums.of(*parts) for parts in zip(*(part.chunk(_FOLDS) for part in train), strict=True)]
        whole = sum(folds[1:], folds[0])
        # What is solved for, and the period that tells how good it is.
        trials = [(_without(folds, fold), fold) for fold in folds] if len(folds) > 1 else []
        trials += [] if val is None else [(whole, _Sums.of(*val))]
        naive = self._naive()
        chosen = (_RIDGE, "level", _FREE)
        start = [seen.error(_solved(sums, *chosen, naive)) for sums, seen in trials]

        def better(choices: Iterable[Choice], chosen: Choice, best: float) -> tuple[Choice, float]:
            for choice in choices:
                errors = [seen.error(_solved(sums, *choice, naive)) for sums, seen in trials]
                ratios = [error / max(at, 1e-30) for error, at in zip(errors, start, strict=True)]
                if ratios and max(ratios) <= 1 and sum(ratios) / len(ratios) < best:
                    chosen, best = choice, sum(ratios) / len(ratios)
            return chosen, best

        chosen, best = better([(*chosen[:2], pull) for pull in _PULLS], chosen, 1.0)
        chosen, _ = better([(ridge, name, chosen[2]) for ridge in _RIDGES for name in naive], chosen, best)
        self.wanders.fill_(chosen[0] > _RIDGE and chosen[1] == "last")
        self.weight_HD.copy_(_solved(whole, *chosen, naive).T)

    def _naive(self) -> dict[str, Tensor]:
        """Return the naive forecasts as weights (D, H)."""
        horizon, columns = self.weight_HD.shape
        device = self.weight_HD.device
        level_DH, last_DH, season_DH = torch.zeros(3, columns, horizon, dtype=torch.float64, device=device)
        last_DH[-2] = 1
        step_H = torch.arange(horizon, device=device)
        season_DH[columns - 1 - self.season + step_H % self.season, step_H] = 1
        return {"level": level_DH, "last": last_DH, "season": season_DH}


def _without(folds: Sequence[_Sums], left_out: _Sums) -> _Sums:
    others = [fold for fold in folds if fold is not left_out]
    return sum(others[1:], others[0])


def _solved(sums: _Sums, ridge: float, name: str, pull: float, naive: dict[str, Tensor]) -> Tensor:
    """Return the weights (D, H) that penalties lead to, which are parts of the number of windows."""
    penalty_D = torch.full((len(sums.gram_DD),), ridge * sums.windows, dtype=torch.float64, device=sums.gram_DD.device)
    penalty_D[-1] = pull * sums.windows
    return torch.linalg.solve(sums.gram_DD + penalty_D.diag(), sums.moment_DH + penalty_D[:, None] * naive[name])


def windows_of(parts: Iterator[Windows]) -> Windows | None:
    """Return batches of windows as one, or None where there is no window."""
    found = [part for part in parts if len(part[0])]
    return tuple(torch.cat(columns) for columns in zip(*found, strict=True)) if found else None  # type: ignore[return-value]
