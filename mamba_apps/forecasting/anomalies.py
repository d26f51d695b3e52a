"""Observations scored by the intervals of the forecasts that were made before them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mamba_apps.errors import UserError
from mamba_apps.forecasting.saving import Fitted


def score_anomalies(fitted: Fitted, forecasts: pd.DataFrame, level: float | None) -> pd.DataFrame:
    """Score observed targets by an interval; see `Forecaster.anomalies`.

    Args:
        fitted: The forecaster.
        forecasts: Its forecasts with what was observed, as `cross_validation` returns them.
        level: The interval's level; None for the widest.

    Raises:
        UserError: The forecaster has no such interval.
    """
    if not fitted.levels:
        raise UserError(
            "anomalies need intervals, and this forecaster has none", "fit with levels, such as levels=[99]"
        )
    chosen = fitted.levels[-1] if level is None else level
    if chosen not in fitted.levels:
        known = ", ".join(f"{one:g}" for one in fitted.levels)
        raise UserError(f"there is no interval of level {chosen!r}", f"choose one of {known}, or fit with it")
    columns = fitted.reading.columns["columns"]
    low, high = (f"{fitted.name}-{side}-{chosen:g}" for side in ("lo", "hi"))
    y, point = (forecasts[name].to_numpy() for name in (columns["target_col"], fitted.name))
    above = y >= point
    reach = np.where(above, forecasts[high] - point, point - forecasts[low])
    # A forecast that is sure of itself has an interval of no width; rounding must not make an anomaly of it.
    least = 1e-6 * np.maximum(np.abs(point), 1.0)
    score = np.abs(y - point) / np.maximum(reach, least)
    found = forecasts.loc[:, [columns["id_col"], columns["time_col"], columns["target_col"], fitted.name, low, high]]
    return found.assign(score=np.where(above, score, -score), anomaly=score > 1).reset_index(drop=True)
