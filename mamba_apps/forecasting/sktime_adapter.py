"""The forecasters behind sktime's interface, for its pipelines, tuning and evaluation.

Needs sktime (the extra ``compare``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from sktime.forecasting.base import BaseForecaster, ForecastingHorizon

from mamba_apps.forecasting.forecaster import Forecaster

# Levels whose radii stand for all the others between them.
_LEVELS = (*range(1, 100), 99.5, 99.9)
_SERIES = "series"


class MambaForecaster(BaseForecaster):
    """A forecaster of this package as one of sktime's: a series, or a panel of them learned at once.

    What sktime calls X is known ahead; intervals are conformal, from the errors on the part held back of the fit.

    Args:
        model: As in `mamba_apps.Forecaster`, like all that follow.
        lookback: Steps of the past each forecast reads; None follows the data.
        model_options: The model's own options.
        calendar: Whether the calendar of the timestamps is known to the model.
        loss: "mae", "mse" or "huber".
        lr: The highest learning rate.
        max_steps: Most optimiser steps; None follows the number of windows.
        batch_size: Windows a step.
        patience: Stop after so many validations without a better one.
        seed: Of all randomness.
        accelerator: As in Lightning: "auto", "cpu", "gpu", ...

    Examples:
        >>> from sktime.datasets import load_airline
        >>> from mamba_apps.forecasting.sktime_adapter import MambaForecaster
        >>> forecaster = MambaForecaster("ridge").fit(load_airline(), fh=[1, 2, 3])
        >>> forecast = forecaster.predict()
        >>> intervals = forecaster.predict_interval(coverage=[0.8, 0.95])
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": "the Mamba Apps authors",
        "maintainers": "the Mamba Apps authors",
        "python_dependencies": "torch",
        "capability:multivariate": False,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": True,
        "capability:random_state": False,
        "capability:update": True,
        "y_inner_mtype": ["pd.Series", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "requires-fh-in-fit": True,
        "X-y-must-have-same-index": True,
    }

    # What was observed is kept here, in the long format.
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}

    def __init__(
        self,
        model: str = "patch",
        lookback: int | None = None,
        model_options: Mapping[str, Any] | None = None,
        calendar: bool = True,
        loss: str = "mae",
        lr: float = 2e-3,
        max_steps: int | None = None,
        batch_size: int = 64,
        patience: int = 5,
        seed: int = 0,
        accelerator: str = "auto",
    ) -> None:
        self.model = model
        self.lookback = lookback
        self.model_options = model_options
        self.calendar = calendar
        self.loss = loss
        self.lr = lr
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.patience = patience
        self.seed = seed
        self.accelerator = accelerator
        super().__init__()
        # Where somebody lets sktime remember the data too, it begins with none.
        self._y = self._X = None

    def _fit(self, y: Any, X: Any, fh: ForecastingHorizon) -> MambaForecaster:
        clock = _Clock.of(y.index)
        columns = [] if X is None else _names(X)
        self.forecaster_ = Forecaster(
            self.model,
            horizon=int(max(self._relative(fh))),
            lookback=self.lookback,
            freq=clock.freq,
            levels=_LEVELS,
            intervals="conformal",
            model_options=self.model_options,
            future=columns,
            missing="mask",
            short="pad",
            calendar=self.calendar,
            loss=self.loss,
            lr=self.lr,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            patience=self.patience,
            seed=self.seed,
            accelerator=self.accelerator,
            progress=False,
            alias="forecast",
        )
        self.clock_ = clock
        self.past_ = _long(y, X, clock)
        self.like_ = y.iloc[:0]
        self.keys_ = _keys(y.index)
        self.forecaster_.fit(self.past_)
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> MambaForecaster:
        both = pd.concat([self.past_, _long(y, X, self.clock_)], ignore_index=True)
        both = both.drop_duplicates(["unique_id", "ds"], keep="last")
        # Stable: the series keep their order.
        place = both["unique_id"].map({name: number for number, name in enumerate(dict.fromkeys(both["unique_id"]))})
        self.past_ = both.assign(place=place).sort_values(["place", "ds"], ignore_index=True).drop(columns="place")
        if update_params:
            self.forecaster_.fit(self.past_)
        return self

    def _predict(self, fh: ForecastingHorizon, X: Any) -> Any:
        forecast, index = self._ahead(fh, X)
        values = forecast["forecast"].to_numpy()
        if isinstance(self.like_, pd.Series):
            return pd.Series(values, index=index, name=self.like_.name)
        return pd.DataFrame(values[:, None], index=index, columns=self.like_.columns)

    def _predict_quantiles(self, fh: ForecastingHorizon, X: Any, alpha: Sequence[float]) -> pd.DataFrame:
        forecast, index = self._ahead(fh, X)
        names = self._get_varnames()
        center = forecast["forecast"].to_numpy()
        radius = np.stack([np.zeros_like(center), *(forecast[f"forecast-hi-{v:g}"] - center for v in _LEVELS)])
        levels = np.array([0.0, *_LEVELS])
        found = {}
        for a in alpha:
            level = abs(1 - 2 * a) * 100
            above = np.clip(np.searchsorted(levels, level), 1, len(levels) - 1)
            part = np.clip((level - levels[above - 1]) / (levels[above] - levels[above - 1]), 0, 1)
            reach = radius[above - 1] + part * (radius[above] - radius[above - 1])
            found[names[0], a] = center + np.sign(a - 0.5) * reach
        columns = pd.MultiIndex.from_product([names, alpha])
        return pd.DataFrame(found, index=index, columns=columns)

    def _ahead(self, fh: ForecastingHorizon, X: Any) -> tuple[pd.DataFrame, pd.Index]:
        """Return the rows of the horizon that were asked for, and sktime's index of them."""
        steps = self._relative(fh)
        horizon, ids = self.forecaster_.horizon, list(dict.fromkeys(self.past_["unique_id"]))
        known = [name for name in self.past_.columns if name not in ("unique_id", "ds", "y")]
        future = self._future(X, ids, horizon) if known else None
        forecast = self.forecaster_.predict(future, df=self.past_)
        place = np.concatenate([number * horizon + steps - 1 for number in range(len(ids))])
        times = fh.to_absolute_index(self.cutoff)
        if self.keys_ is not None:
            tuples = [(*key, stamp) for key in self.keys_ for stamp in times]
            times = pd.MultiIndex.from_tuples(tuples, names=self.like_.index.names)
        return forecast.iloc[place], times

    def _future(self, X: Any, ids: Sequence[str], horizon: int) -> pd.DataFrame:
        """Return X over the whole horizon; steps that were not asked for need no values, and take the nearest."""
        ends = self.past_.groupby("unique_id", sort=False)["ds"].max()
        rows = _long(None, X, self.clock_)
        parts = []
        for name in ids:
            steps = self.clock_.after(ends[name], horizon)
            own = rows[rows["unique_id"] == name].drop(columns="unique_id").drop_duplicates("ds").set_index("ds")
            filled = own.reindex(steps).ffill().bfill()
            parts.append(filled.rename_axis("ds").reset_index().assign(unique_id=name))
        return pd.concat(parts, ignore_index=True)

    def _relative(self, fh: ForecastingHorizon) -> np.ndarray:
        return np.asarray(fh.to_relative(self.cutoff).to_numpy(), dtype=np.int64)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings small enough for sktime's own checks."""
        small = {"d_model": 8, "layers": 1, "decoder": 4}
        return [
            {"model": "ridge", "accelerator": "cpu"},
            {"model": "patch", "model_options": small, "max_steps": 2, "accelerator": "cpu"},
        ]


class _Clock:
    """How sktime's timestamps become ours: as they are where they have a frequency, else counted."""

    def __init__(self, freq: str | int, origin: Any) -> None:
        self.freq, self.origin = freq, origin

    @classmethod
    def of(cls, index: pd.Index) -> _Clock:
        times = index.get_level_values(-1).unique().sort_values() if isinstance(index, pd.MultiIndex) else index
        if isinstance(times, pd.PeriodIndex):
            times = times.to_timestamp(how="start")
        if isinstance(times, pd.DatetimeIndex):
            freq = times.freqstr or (pd.infer_freq(times) if len(times) > 2 else None)
            if freq is not None:
                return cls(freq, None)
            return cls(1, times)
        # To sktime the step after a whole number is the next one, whatever the distances.
        return cls(1, None)

    def times(self, index: pd.Index) -> pd.Index:
        """Return our timestamps of an index of sktime's."""
        if isinstance(index, pd.PeriodIndex):
            index = index.to_timestamp(how="start")
        if self.origin is not None:
            return pd.Index(self.origin.searchsorted(index))
        return index

    def after(self, last: Any, steps: int) -> pd.Index:
        from mamba_datasets.series import Frequency

        return Frequency.parse(self.freq).range(last, steps + 1)[1:]


def _names(X: pd.DataFrame) -> list[str]:
    return [f"x{number}" for number in range(X.shape[1])]


def _long(y: Any, X: Any, clock: _Clock) -> pd.DataFrame:
    """Return sktime's containers in the long format."""
    index = (y if y is not None else X).index
    if isinstance(index, pd.MultiIndex):
        keys = ["/".join(map(str, key[:-1])) for key in index]
        times = clock.times(index.get_level_values(-1))
    else:
        keys, times = [_SERIES] * len(index), clock.times(index)
    found = pd.DataFrame({"unique_id": keys, "ds": times})
    if y is not None:
        found["y"] = np.asarray(y, dtype=np.float64).reshape(-1)
    if X is not None:
        for name, number in zip(_names(X), range(X.shape[1]), strict=True):
            found[name] = X.iloc[:, number].to_numpy()
    return found


def _keys(index: pd.Index) -> list[tuple[Any, ...]] | None:
    """Return the ids of a panel, or None for one series."""
    return list(dict.fromkeys(key[:-1] for key in index)) if isinstance(index, pd.MultiIndex) else None
