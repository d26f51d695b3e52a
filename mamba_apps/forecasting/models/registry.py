"""Forecasters by name, so that a recipe, the command or the API can say which one it wants."""

from __future__ import annotations

from typing import Any, TypeAlias

from mamba_apps.forecasting.models.base import ForecastModel, Sizes
from mamba_apps.registry import Registry, Spec

ModelSpec: TypeAlias = Spec[ForecastModel]
_models: Registry[ForecastModel] = Registry("forecasting model", first="sizes")
register, names, spec = _models.register, _models.names, _models.spec


def create(
    name: str,
    lookback: int,
    horizon: int,
    n_past: int = 0,
    n_future: int = 0,
    n_static: int = 0,
    **options: Any,
) -> ForecastModel:
    """Build a forecaster.

    Args:
        name: A registered name.
        lookback: Steps of the past.
        horizon: Steps to forecast.
        n_past: Covariates known up to the present only.
        n_future: Covariates known ahead.
        n_static: Covariates of the whole series.
        options: The model's own; ``spec(name).options`` lists them.

    Raises:
        UserError: If the name or an option is unknown (with the nearest ones), or the model refuses a value.
    """
    return _models.build(name, Sizes(lookback, horizon, n_past, n_future, n_static), options)
