"""Forecasts of a fitted forecaster over windows, and from cuts in the past as if each were the present.

Dimensions in names: W windows, H horizon, V levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.intervals import around, from_quantiles, level_names
from mamba_apps.forecasting.losses import point_forecast
from mamba_apps.forecasting.saving import Fitted
from mamba_datasets.series import Scaler, SeriesSet, WindowDataset

_BATCH = 256


@torch.inference_mode()
def forecast_windows(fitted: Fitted, windows: WindowDataset, scaler: Scaler) -> np.ndarray:
    """Return forecasts and intervals in the data's unit.

    Args:
        fitted: The forecaster.
        windows: Scaled windows.
        scaler: Their scales, of the windows' series in their order.

    Returns:
        float64 (W, H, 1 + 2V), in the order of `level_names`.
    """
    parts = []
    for numbers in torch.arange(len(windows)).split(_BATCH):
        batch = windows.batch(numbers)
        parts.append(scaler.inverse_y(_with_levels(fitted, batch), batch["series"]))
    return torch.cat(parts).double().numpy()


def cross_validate(
    series_set: SeriesSet,
    fit: Callable[[SeriesSet], Fitted],
    horizon: int,
    n_windows: int,
    step_size: int,
    refit: bool | int,
) -> pd.DataFrame:
    """Fit on what lies before a cut and forecast what follows it; see `Forecaster.cross_validation`.

    Args:
        series_set: The series.
        fit: From the series up to a cut to a forecaster.
        horizon: Steps to forecast.
        n_windows: How many cuts.
        step_size: Steps from one to the next.
        refit: Whether to fit anew at every cut, or at every so many-th.

    Raises:
        DataError: A series is too short for the first cut.
        UserError: A number is out of range.
    """
    for name, value in (("n_windows", n_windows), ("step_size", step_size), ("refit", int(refit) or 1)):
        if value < 1:
            raise UserError(f"{name} is {value}", "give at least 1")
    # How many steps of each series lie behind each cut.
    behind = [horizon + step_size * left for left in reversed(range(n_windows))]
    every = int(refit) or n_windows
    frames = []
    for first in range(0, n_windows, every):
        cuts = behind[first : first + every]
        fitted = fit(series_set.without_last(cuts[0]))
        part = series_set.last(fitted.network.sizes.lookback + cuts[0]).without_last(cuts[-1] - horizon)
        frames.append(_from_cuts(fitted, part, step_size))
    found = pd.concat(frames, ignore_index=True)
    # By series in their own order, then by cut: rows of one group of cuts stand in time order already.
    place = found[series_set.columns["id_col"]].map({key: number for number, key in enumerate(series_set.keys)})
    return found.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


def _from_cuts(fitted: Fitted, part: SeriesSet, step_size: int) -> pd.DataFrame:
    """Forecast from every ``step_size``-th step of each series that has a whole lookback before it."""
    sizes, columns = fitted.network.sizes, part.columns
    scaler = fitted.scaler.select(part.ids)
    windows = WindowDataset(scaler.transform(part), sizes.lookback, sizes.horizon, stride=step_size)
    values_WHV = forecast_windows(fitted, windows, scaler)
    frames = []
    for series, origin in zip(*windows.locate(np.arange(len(windows))), strict=True):
        one = part.series[series]
        ahead = slice(origin, origin + sizes.horizon)
        frames.append(
            pd.DataFrame(
                {
                    columns["id_col"]: one.key,
                    columns["time_col"]: one.index[ahead],
                    "cutoff": one.index[origin - 1],
                    columns["target_col"]: np.where(one.observed[ahead], one.y[ahead], np.nan),
                }
            )
        )
    found = pd.concat(frames, ignore_index=True)
    for place, name in enumerate(level_names(fitted.levels, fitted.alias or fitted.model)):
        found[name] = values_WHV[..., place].reshape(-1)
    return found


def _with_levels(fitted: Fitted, batch: Mapping[str, Tensor]) -> Tensor:
    """Return scaled forecasts and intervals (W, H, 1 + 2V)."""
    forecast = fitted.network(batch)
    if not fitted.levels:
        return point_forecast(forecast, fitted.network.quantiles)
    if fitted.radius_VH is not None:
        return around(forecast[..., 0], fitted.radius_VH)
    return from_quantiles(forecast[:, :, 0], fitted.levels)
