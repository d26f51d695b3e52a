"""One series as it comes in: an observation at a time, a forecast whenever one is asked for, at constant cost.

What has passed is in the model's own state: the last lookback, or what a recurrent model carries of all of it. Neither
time nor memory grows with it.

Dimensions in names: B series (one), S static covariates, X columns of a step, H horizon, F known-future columns, V
levels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.backtest import with_levels, with_past
from mamba_apps.forecasting.clock import Clock
from mamba_apps.forecasting.intervals import level_names
from mamba_apps.forecasting.recent import corrected, recent_offsets
from mamba_apps.forecasting.saving import Fitted
from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series import SeriesSet

_LABEL = "stream"


class SeriesStream:
    """A series that is followed; `Forecaster.stream` makes it.

    Args:
        fitted: The forecaster.
        history: A set of the one series, up to the present.

    Raises:
        UserError: The series is shorter than the lookback.
    """

    def __init__(self, fitted: Fitted, history: SeriesSet) -> None:
        self._fitted, self._sizes = fitted, fitted.network.sizes
        # What the intervals are corrected by at the start stays: later forecasts would each need many others.
        self._offset_BV = np.zeros((1, len(fitted.levels)))
        if fitted.calibration:
            self._offset_BV = recent_offsets(fitted, history, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        history = with_past(fitted, history, self._sizes.lookback).last(self._sizes.lookback)
        if int(history.lengths[0]) < self._sizes.lookback:
            raise UserError(
                f"series {history.ids[0]!r} has fewer steps than the lookback of {self._sizes.lookback}",
                "fit with a shorter lookback, or with short='pad'",
            )
        self.id = history.keys[0]
        self._scaler = fitted.scaler.select(history.ids)
        self._columns = _Columns(history)
        self._clock = Clock(history, self._sizes.horizon)
        scaled = self._scaler.transform(history).series[0]
        x_LX = np.concatenate([scaled.past, scaled.future], axis=1)
        self._device, season = fitted.device, history.season or 1
        # What a missing step is filled from, as the reader does.
        self._y: deque[float] = deque(scaled.y[-season:].tolist(), maxlen=season)
        self._last_X = x_LX[-1]
        static_BS = torch.from_numpy(scaled.static)[None].to(self._device)
        with torch.inference_mode():
            self._state = fitted.network.init_state(static_BS)
            for y, observed, x_X in zip(scaled.y, scaled.observed, x_LX, strict=True):
                self._read(float(y), bool(observed), x_X)

    @property
    def next(self) -> Any:
        """The timestamp or whole number of the step that is expected next."""
        return self._clock.next

    def observe(self, y: float | None, ds: Any = None, **covariates: Any) -> SeriesStream:
        """Take the next observation.

        Args:
            y: The target; None or NaN where it was not observed, which a forecaster with missing="error" refuses.
            ds: Its timestamp or whole number; None for the next one. A later one leaves the steps between unobserved.
            covariates: The value of each past and known-future covariate of that step, by its column.

        Returns:
            This stream.

        Raises:
            DataError: The observation cannot be used; the stream is as it was.
        """
        missing = self._fitted.reading.missing
        if isinstance(y, str):
            raise self._refused(f"a number was expected as the target, found {y!r}", "pass a number, or None")
        passed = 0 if ds is None else self._passed(ds)
        seen = y is not None and not math.isnan(y)
        if y is not None and math.isinf(y):
            raise self._refused("a finite target was expected, found an infinite one", "correct it, or pass None")
        if missing == "error" and (passed or not seen):
            found = f"{passed} steps are missing" if passed else "there is no target"
            raise self._refused(f"an observation of {self.next} was expected, {found}", "fit with missing='mask'")
        x_X = self._columns.encode(covariates, self._where)
        for _ in range(passed):
            self._push(None, None)
        self._push(float(y) if y is not None and seen else None, x_X)
        return self

    def forecast(self, future: pd.DataFrame | Mapping[str, Sequence[Any]] | None = None) -> pd.DataFrame:
        """Forecast the steps that come next.

        Args:
            future: The columns known ahead, a value for each step of the horizon in order; None where there are none.

        Returns:
            As `Forecaster.predict`, of this series.

        Raises:
            DataError: The columns known ahead are missing, or cannot be used.
        """
        known_HF = self._columns.encode_future(future, self._sizes.horizon, self._where)
        known_HF = self._scaled(np.concatenate([known_HF, self._clock.features], axis=1), self._columns.n_past)
        with torch.inference_mode():
            future_BHF = torch.from_numpy(known_HF)[None].to(self._device)
            forecast = self._fitted.network.forecast(self._state, future_BHF)
            values = with_levels(self._fitted, forecast, self._fitted.reaches(self._scaler.ids)).cpu()
        values_BHV = self._scaler.inverse_y(values, torch.zeros(1, dtype=torch.int64)).double().numpy()
        values_HV = corrected(values_BHV, self._offset_BV)[0]
        names = level_names(self._fitted.levels, self._fitted.name)
        columns = self._fitted.reading.named
        frame = pd.DataFrame({columns["id_col"]: self.id, columns["time_col"]: self._clock.index})
        return frame.assign(**dict(zip(names, values_HV.T, strict=True)))

    @property
    def _where(self) -> str:
        return f"series {str(self.id)!r}, {self.next}"

    def _refused(self, found: str, remedy: str) -> DataError:
        return DataError(_LABEL, self._where, found, remedy)

    def _passed(self, ds: Any) -> int:
        stamp = self._columns.history.bound(ds)
        steps = self._clock.steps_to(stamp)
        if steps < 0:
            found = f"a step of freq={self._columns.history.frequency} from {self.next} on was expected, found {ds}"
            raise self._refused(found, "pass each step once and in order, or leave ds out")
        return steps

    def _push(self, y: float | None, x_X: np.ndarray | None) -> None:
        """Read a step; what was not observed is filled as the reader fills it."""
        calendar = self._clock.tick()
        row_X = self._last_X.copy()
        if x_X is not None:
            row_X[: len(x_X)] = self._scaled(x_X[None], 0)[0]
        # The calendar is never scaled.
        row_X[len(row_X) - len(calendar) :] = calendar
        seen = y is not None
        scaled = (y - self._scaler.y_mean[0]) / self._scaler.y_scale[0] if y is not None else self._y[0]
        self._y.append(float(scaled))
        self._last_X = row_X
        with torch.inference_mode():
            self._read(float(scaled), seen or self._fitted.reading.missing == "seasonal", row_X)

    def _read(self, y: float, observed: bool, x_X: np.ndarray) -> None:
        y_B = torch.tensor([y], dtype=torch.float32, device=self._device)
        observed_B = torch.tensor([observed], device=self._device)
        x_BX = torch.from_numpy(x_X)[None].to(self._device)
        self._state = self._fitted.network.step(self._state, y_B, observed_B, x_BX)

    def _scaled(self, values: np.ndarray, first: int) -> np.ndarray:
        """Scale columns (T, C) of a step, from the ``first`` on."""
        return self._scaler.scaled_x(values, 0, slice(first, first + values.shape[1]))


class _Columns:
    """How a step's covariates become numbers, as the reader made them of the training data."""

    def __init__(self, history: SeriesSet) -> None:
        self.history = history
        self.n_past = len(history.past_names)
        self._past, self._future = (tuple(history.columns[role]) for role in ("past", "future"))

    def encode(self, row: Mapping[str, Any], where: str) -> np.ndarray:
        """Return the numbers (P + F without the calendar,) of one step."""
        known = (*self._past, *self._future)
        for name in row:
            if name not in known:
                raise DataError(
                    _LABEL, where, f"a covariate of the fit was expected, found {name!r}", nearest(name, known)
                )
        return np.array([number for name in known for number in self._numbers(name, row.get(name), where)])

    def encode_future(self, future: Any, horizon: int, where: str) -> np.ndarray:
        """Return the numbers (H, F without the calendar) of the steps to come."""
        if not self._future:
            return np.empty((horizon, 0))
        columns = []
        for name in self._future:
            values = None if future is None or name not in future else list(future[name])
            if values is None or len(values) != horizon:
                found = "none" if values is None else f"{len(values)}"
                expected = f"{horizon} values of {name!r}, which is known ahead, were expected, found {found}"
                raise DataError(_LABEL, where, expected, "pass one for each step of the horizon")
            columns.append(np.array([self._numbers(name, value, where) for value in values]))
        return np.concatenate(columns, axis=1)

    def _numbers(self, name: str, value: Any, where: str) -> list[float]:
        categories = self.history.categories.get(name)
        if categories is not None:
            if str(value) not in categories:
                expected = f"a category of the training data was expected for {name!r}, found {value!r}"
                raise DataError(_LABEL, where, expected, nearest(str(value), categories))
            return [float(str(value) == category) for category in categories]
        if isinstance(value, str) or value is None or not math.isfinite(value):
            remedy = f"pass {name}=" if value is None else "correct it"
            raise DataError(_LABEL, where, f"a finite number was expected for {name!r}, found {value!r}", remedy)
        return [float(value)]
