"""Intervals corrected by how the latest forecasts of each series came true.

What lies just before a forecast is forecast too, from where it was the future, and compared with what came: conformal
quantile regression (Romano, Patterson, Candès, 2019) whose calibration part moves along with the present. Where weeks
grow harder or easier to forecast than those that were held back in the fit, the intervals follow.

Dimensions in names: W windows, K recent windows of each, U recent windows in all, H horizon, V levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mamba_apps.errors import UserError
from mamba_datasets.series import SeriesSet, WindowDataset

if TYPE_CHECKING:
    from mamba_apps.forecasting.saving import Fitted

_CHUNK = 4096


def check_calibration(calibration: int, horizon: int, levels: Sequence[float]) -> None:
    """Refuse steps that no interval can be corrected by.

    Args:
        calibration: Steps before each forecast; 0 for none.
        horizon: Steps of a forecast.
        levels: The intervals' levels, in increasing order.

    Raises:
        UserError: There are no levels, or too few steps for the horizon or the widest interval.
    """
    if calibration == 0:
        return
    if not levels:
        raise UserError(f"calibration is {calibration}, and there are no intervals to correct", "give levels")
    enough = math.ceil(levels[-1] / (100 - levels[-1]))
    least = horizon * math.ceil(enough / horizon)
    if isinstance(calibration, bool) or not isinstance(calibration, int) or calibration < least:
        raise UserError(
            f"calibration is {calibration!r}, too few steps for a horizon of {horizon} and intervals of "
            f"{levels[-1]:g} %",
            f"give 0, or a whole number of at least {least}",
        )


def corrected(values_WHV: np.ndarray, offset_WV: np.ndarray) -> np.ndarray:
    """Return forecasts with their intervals reaching further by an offset, or less far where it is negative.

    Args:
        values_WHV: In the order of `level_names` (W, H, 1 + 2V).
        offset_WV: One a window and level.

    Returns:
        The same shape: an interval still holds the point forecast, and every narrower interval.
    """
    found_WHV = values_WHV.copy()
    inner_low = inner_high = values_WHV[..., 0]
    for level in range(offset_WV.shape[1]):
        low, high = 1 + 2 * level, 2 + 2 * level
        offset_W1 = offset_WV[:, level, None]
        found_WHV[..., low] = inner_low = np.minimum(values_WHV[..., low] - offset_W1, inner_low)
        found_WHV[..., high] = inner_high = np.maximum(values_WHV[..., high] + offset_W1, inner_high)
    return found_WHV


def recent_offsets(fitted: Fitted, past: SeriesSet, series_W: np.ndarray, behind_W: np.ndarray) -> np.ndarray:
    """Return how much further each interval has to reach, by the forecasts of the steps just before each window.

    Args:
        fitted: The forecaster, with intervals.
        past: The series, in the data's unit.
        series_W: The series of each window, by its position.
        behind_W: How many steps of ``past`` lie behind each window's cut: 0 at the end of the series.

    Returns:
        float64 (W, V), in the data's unit; 0 where too little was observed just before to tell, or a series is short.
    """
    from mamba_apps.forecasting.backtest import forecast_windows

    sizes, levels = fitted.network.sizes, fitted.levels
    offset_WV = np.zeros((len(series_W), len(levels)))
    recent_K = sizes.horizon * np.arange(1, fitted.calibration // sizes.horizon + 1)
    origin_WK = (past.lengths[series_W] - behind_W)[:, None] - recent_K
    usable_WK = origin_WK >= sizes.lookback
    if not usable_WK.any():
        return offset_WV
    scaler = fitted.scaler.select(past.ids)
    windows = WindowDataset(scaler.transform(past), sizes.lookback, sizes.horizon, short="skip")
    number_WK = windows.numbers(np.broadcast_to(series_W[:, None], origin_WK.shape), origin_WK)
    asked_U, place = np.unique(number_WK[usable_WK], return_inverse=True)
    values_UHV = forecast_windows(fitted, windows, scaler, asked_U)
    series_U, origin_U = windows.locate(asked_U)
    rows_UH = (past.bounds[series_U, 0] + origin_U)[:, None] + np.arange(sizes.horizon)
    y_UH = np.where(past.observed[rows_UH], past.y[rows_UH], np.nan)
    # One more that is never observed stands for windows that reach before the series.
    place_WK = np.full(number_WK.shape, len(asked_U))
    place_WK[usable_WK] = place
    unseen = np.full((1, sizes.horizon), np.nan)
    for number, level in enumerate(levels):
        low_UH, high_UH = values_UHV[..., 1 + 2 * number], values_UHV[..., 2 + 2 * number]
        beyond_UH = np.concatenate([np.maximum(low_UH - y_UH, y_UH - high_UH), unseen])
        for first in range(0, len(place_WK), _CHUNK):
            part = slice(first, first + _CHUNK)
            offset_WV[part, number] = _quantile(beyond_UH[place_WK[part]].reshape(len(place_WK[part]), -1), level)
    return offset_WV


def _quantile(beyond_WN: np.ndarray, level: float) -> np.ndarray:
    """Return the conformal quantile of each row, NaN left out; 0 for a row that has too few to tell it."""
    sorted_WN = np.sort(beyond_WN, axis=1)
    count_W = (~np.isnan(sorted_WN)).sum(axis=1)
    rank_W = np.ceil((count_W + 1) * level / 100).astype(np.int64)
    found_W = np.take_along_axis(sorted_WN, np.minimum(rank_W, np.maximum(count_W, 1))[:, None] - 1, axis=1)[:, 0]
    return np.where(rank_W <= count_W, found_W, 0.0)
