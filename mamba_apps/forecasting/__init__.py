"""Forecasting: models over windows of series, their training, baselines, and the `Forecaster`.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.forecasting.baselines import BASELINES, BaselineCandidate, create_baseline
    from mamba_apps.forecasting.capability import capabilities, capability_table
    from mamba_apps.forecasting.data import SeriesData, WindowData
    from mamba_apps.forecasting.forecaster import Forecaster
    from mamba_apps.forecasting.scores import forecast_scores
    from mamba_apps.forecasting.stream import SeriesStream
    from mamba_apps.forecasting.task import ForecastTask

__all__ = [
    "Forecaster",
    "SeriesStream",
    "forecast_scores",
    "capabilities",
    "capability_table",
    "ForecastTask",
    "SeriesData",
    "WindowData",
    "BASELINES",
    "BaselineCandidate",
    "create_baseline",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Forecaster": "forecaster",
        "SeriesStream": "stream",
        "forecast_scores": "scores",
        "capabilities": "capability",
        "capability_table": "capability",
        "ForecastTask": "task",
        "SeriesData": "data",
        "WindowData": "data",
        "BASELINES": "baselines",
        "BaselineCandidate": "baselines",
        "create_baseline": "baselines",
    },
)
