"""Forecasts of a fitted forecaster over windows, and from cuts in the past as if each were the present.

Dimensions in names: W windows, H horizon, V levels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.intervals import around, from_quantiles, level_names
from mamba_apps.forecasting.losses import point_forecast
from mamba_apps.forecasting.recent import corrected, recent_offsets
from mamba_apps.forecasting.saving import Fitted
from mamba_datasets.errors import DataError
from mamba_datasets.series import Scaler, SeriesSet, Table, WindowDataset

FutureFrame: TypeAlias = pd.DataFrame | Path | str | Table | None
_BATCH = 512


@torch.inference_mode()
def forecast_windows(
    fitted: Fitted, windows: WindowDataset, scaler: Scaler, numbers: np.ndarray | None = None
) -> np.ndarray:
    """Return forecasts and intervals in the data's unit, as the network makes them.

    Args:
        fitted: The forecaster.
        windows: Scaled windows.
        scaler: Their scales, of the windows' series in their order.
        numbers: Which windows; None for all.

    Returns:
        float64 (W, H, 1 + 2V), in the order of `level_names`.
    """
    device, reach_S = fitted.device, fitted.reaches(scaler.ids)
    parts = []
    chosen = torch.arange(len(windows)) if numbers is None else torch.from_numpy(numbers)
    for part in chosen.split(_BATCH):
        batch = windows.batch(part)
        forecast = fitted.network({name: value.to(device) for name, value in batch.items()})
        scaled = with_levels(fitted, forecast, reach_S[batch["series"]])
        parts.append(scaler.inverse_y(scaled.cpu(), batch["series"]))
    return torch.cat(parts).double().numpy()


def with_levels(fitted: Fitted, forecast: Tensor, reach_W: Tensor) -> Tensor:
    """Return what the network forecast as scaled forecasts and intervals (W, H, 1 + 2V).

    Args:
        fitted: The forecaster.
        forecast: What its network returned.
        reach_W: How far conformal intervals reach beside those of others.
    """
    if not fitted.levels:
        return point_forecast(forecast, fitted.network.quantiles)
    if fitted.radius_VH is not None:
        return around(forecast[..., 0], fitted.radius_VH.to(forecast.device), reach_W.to(forecast.device))
    return from_quantiles(forecast[:, :, 0], fitted.levels)


def forecast_ahead(fitted: Fitted, past: SeriesSet, futr_df: FutureFrame) -> pd.DataFrame:
    """Forecast the steps after the end of each series; see `Forecaster.predict`.

    Args:
        fitted: The forecaster.
        past: The series to continue.
        futr_df: The future of the columns known ahead.

    Raises:
        UserError: A series is shorter than the lookback.
    """
    sizes = fitted.network.sizes
    past = with_past(fitted, past, sizes.lookback)
    short = (past.lengths < sizes.lookback).nonzero()[0]
    if len(short):
        raise UserError(
            f"{past.source}: series {past.ids[short[0]]!r} has fewer steps than the lookback of {sizes.lookback}",
            "pass a longer past, or fit with a shorter lookback",
        )
    scaler = fitted.scaler.select(past.ids, past.source)
    ahead = past.last(sizes.lookback).extend_future(futr_df, sizes.horizon)
    windows = WindowDataset(scaler.transform(ahead), sizes.lookback, sizes.horizon, origins="last")
    values = forecast_windows(fitted, windows, scaler)
    if fitted.calibration:
        series = np.arange(len(past))
        values = corrected(values, recent_offsets(fitted, past.last(fitted.memory), series, np.zeros_like(series)))
    return _with_forecasts(past.future_frame(sizes.horizon), fitted, values)


def with_past(fitted: Fitted, series_set: SeriesSet, steps: int) -> SeriesSet:
    """Return the series, led in by unobserved steps to a length where the forecaster takes short ones."""
    missing = np.maximum(steps - series_set.lengths, 0)
    return series_set.lead_in(missing) if fitted.pads and missing.any() else series_set


def cross_validate(
    series_set: SeriesSet,
    fit: Callable[[SeriesSet], Fitted],
    horizon: int,
    n_windows: int,
    step_size: int,
    refit: bool | int,
    least: int,
) -> pd.DataFrame:
    """Fit on what lies before a cut and forecast what follows it; see `Forecaster.cross_validation`.

    Args:
        series_set: The series.
        fit: From the series up to a cut to a forecaster.
        horizon: Steps to forecast.
        n_windows: How many cuts.
        step_size: Steps from one to the next.
        refit: Whether to fit anew at every cut, or at every so many-th.
        least: Steps of the shortest series that can be fitted.

    Raises:
        DataError: A series is too short for the first cut.
        UserError: A number is out of range.
    """
    for name, value in (("n_windows", n_windows), ("step_size", step_size), ("refit", int(refit) or 1)):
        if value < 1:
            raise UserError(f"{name} is {value}", "give at least 1")
    # How many steps of each series lie behind each cut.
    behind = [horizon + step_size * left for left in reversed(range(n_windows))]
    need = behind[0] + least
    for number in np.flatnonzero(series_set.lengths < need)[:1]:
        expected = f"at least {need} steps were expected, {least} before the first cut and {behind[0]} behind it"
        raise DataError(
            series_set.source,
            f"series {series_set.ids[number]!r}",
            f"{expected}, found {series_set.lengths[number]}",
            "make fewer cuts (n_windows) or smaller steps (step_size), shorten lookback, or leave the series out",
        )
    every = int(refit) or n_windows
    frames = []
    for first in range(0, n_windows, every):
        cuts = behind[first : first + every]
        fitted = fit(series_set.without_last(cuts[0]))
        steps, left = fitted.network.sizes.lookback + cuts[0], cuts[-1] - horizon
        part = with_past(fitted, series_set.last(steps), steps).without_last(left)
        past = with_past(fitted, series_set.last(cuts[0] + fitted.memory), steps).without_last(left)
        frames.append(forecasts_within(fitted, part, step_size, past))
    found = pd.concat(frames, ignore_index=True)
    # By series in their own order, then by cut: rows of one group of cuts stand in time order already.
    place = found[series_set.columns["id_col"]].map({key: number for number, key in enumerate(series_set.keys)})
    return found.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


def insample(fitted: Fitted, series_set: SeriesSet, step_size: int) -> pd.DataFrame:
    """Forecast within series from every ``step_size``-th step; see `Forecaster.predict_insample`.

    Args:
        fitted: The forecaster.
        series_set: The series.
        step_size: Steps from one cut to the next.

    Raises:
        DataError: No series, or one of them, is too short for a forecast.
        UserError: The number is out of range.
    """
    if step_size < 1:
        raise UserError(f"step_size is {step_size}", "give at least 1")
    sizes = fitted.network.sizes
    series_set = with_past(fitted, series_set, sizes.lookback + sizes.horizon)
    # Counted from the end, so that the last forecast reaches the last step of each series.
    surplus = np.maximum(series_set.lengths - sizes.lookback - sizes.horizon, 0) % step_size
    return forecasts_within(fitted, series_set.cut(surplus, series_set.lengths), step_size, series_set)


def forecasts_within(fitted: Fitted, part: SeriesSet, step_size: int, past: SeriesSet) -> pd.DataFrame:
    """Forecast from every ``step_size``-th step of each series that has a whole lookback before it.

    Args:
        fitted: The forecaster.
        part: The series.
        step_size: Steps from one cut to the next.
        past: The same series up to the same ends, from further back, by which intervals are corrected.

    Returns:
        One row a step: id, timestamp, "cutoff", the observed target and the forecasts, by series and then by cut.
    """
    sizes, columns = fitted.network.sizes, part.columns
    scaler = fitted.scaler.select(part.ids, part.source)
    windows = WindowDataset(scaler.transform(part), sizes.lookback, sizes.horizon, stride=step_size)
    values_WHV = forecast_windows(fitted, windows, scaler)
    series, origin = windows.locate(np.arange(len(windows)))
    if fitted.calibration:
        values_WHV = corrected(values_WHV, recent_offsets(fitted, past, series, part.lengths[series] - origin))
    ahead_WH = origin[:, None] + np.arange(sizes.horizon)
    rows = (part.bounds[series, 0][:, None] + ahead_WH).reshape(-1)
    # All timestamps as one index: a lookup for every window would take longer than its forecast.
    times = part.indexes[0].append(list(part.indexes[1:]))
    first = np.cumsum(part.lengths) - part.lengths
    keys = pd.Index(list(part.keys)).take(np.repeat(series, sizes.horizon))
    found = pd.DataFrame(
        {
            columns["id_col"]: keys,
            columns["time_col"]: times.take((first[series][:, None] + ahead_WH).reshape(-1)),
            "cutoff": times.take(np.repeat(first[series] + origin - 1, sizes.horizon)),
            columns["target_col"]: np.where(part.observed[rows], part.y[rows], np.nan),
        }
    )
    return _with_forecasts(found, fitted, values_WHV)


def _with_forecasts(frame: pd.DataFrame, fitted: Fitted, values_WHV: np.ndarray) -> pd.DataFrame:
    columns = level_names(fitted.levels, fitted.name)
    return pd.concat([frame, pd.DataFrame(values_WHV.reshape(-1, len(columns)), columns=columns)], axis=1)
