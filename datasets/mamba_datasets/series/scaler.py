"""Scaling to zero mean and unit spread, fitted on the training part only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series.data import SeriesSet

_FORMAT = 1
# A covariate that was nearly always zero while training can come a hundred deviations later: no model has learned what
# that means, and a linear one would take it at its word.
_FURTHEST = 5.0


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and population standard deviation of each series' target and covariates; a constant has scale 1.

    Targets, past and known-future covariates are scaled a series each, static covariates over all series. Covariates
    count up to five deviations from their mean, and those that are 0 or 1 and calendar features stay as they are.

    Args:
        ids: The ids of the series it was fitted on.
        y_mean: float64 (series,).
        y_scale: float64 (series,), positive.
        x_names: Names of the past and known-future covariates.
        x_mean: float64 (series, P + F).
        x_scale: float64 (series, P + F), positive.
        static_names: Names of the static covariates.
        static_mean: float64 (S,).
        static_scale: float64 (S,), positive.
    """

    ids: tuple[str, ...]
    y_mean: np.ndarray
    y_scale: np.ndarray
    x_names: tuple[str, ...]
    x_mean: np.ndarray
    x_scale: np.ndarray
    static_names: tuple[str, ...]
    static_mean: np.ndarray
    static_scale: np.ndarray

    @classmethod
    def fit(cls, train: SeriesSet) -> Scaler:
        """Take the statistics of the training part.

        Args:
            train: The training part, such as `series_set.before("2018-07-01")`; only its observed targets count.

        Returns:
            The scaler.

        Raises:
            DataError: A series has no observed target in the training part.
        """
        names = (*train.past_names, *train.future_names)
        y_stats = np.empty((len(train), 2))
        x_stats = np.tile(np.array([[0.0], [1.0]]), (len(train), 1, len(names)))
        scaled = [number for number, name in enumerate(names) if name not in train.binary]
        for number, (first, last) in enumerate(train.bounds):
            observed = train.observed[first:last]
            if not observed.any():
                found = "at least one observed target in the training part was expected, found none"
                where = f"series {train.ids[number]!r}"
                raise DataError(train.source, where, found, "train on a longer part or drop the series")
            y_stats[number] = _statistics(train.y[first:last][observed][:, None])[:, 0]
            if scaled:
                x_stats[number][:, scaled] = _statistics(train.x[first:last, scaled])
        static = _statistics(train.static)
        kept = [number for number, name in enumerate(train.static_names) if name in train.binary]
        static[0, kept], static[1, kept] = 0.0, 1.0
        return cls(
            ids=tuple(train.ids),
            y_mean=y_stats[:, 0],
            y_scale=y_stats[:, 1],
            x_names=names,
            x_mean=x_stats[:, 0],
            x_scale=x_stats[:, 1],
            static_names=train.static_names,
            static_mean=static[0],
            static_scale=static[1],
        )

    def transform(self, series_set: SeriesSet) -> SeriesSet:
        """Scale a set; masked steps are scaled like any other.

        Args:
            series_set: A set with the covariates of the training part, and no series outside it.

        Returns:
            A set with columns of its own.

        Raises:
            DataError: A series or its covariates are not those of the training part.
        """
        names = (*series_set.past_names, *series_set.future_names)
        if names != self.x_names or series_set.static_names != self.static_names:
            found = f"covariates {[*self.x_names, *self.static_names]} were expected"
            found += f", found {[*names, *series_set.static_names]}"
            raise DataError(
                series_set.source, "covariates", found, "read the data with the columns it was trained with"
            )
        rows = self._rows(series_set.ids, series_set.source)
        # Columns that are never scaled, such as the calendar's, need no copy where they are all there is.
        scales_x = any(name not in series_set.binary for name in names)
        y, x = series_set.y.copy(), series_set.x.copy() if scales_x else series_set.x
        for number, (first, last) in zip(rows, series_set.bounds, strict=True):
            y[first:last] = (series_set.y[first:last] - self.y_mean[number]) / self.y_scale[number]
            if scales_x:
                x[first:last] = self.scaled_x(series_set.x[first:last], int(number))
        static = (series_set.static - self.static_mean) / self.static_scale
        static = np.clip(static, -_FURTHEST, _FURTHEST).astype(np.float32)
        return dataclasses.replace(series_set, y=y, x=x, static=static)

    def scaled_x(self, values: np.ndarray, series: int, columns: slice = slice(None)) -> np.ndarray:
        """Scale covariates of one series.

        Args:
            values: (T, C) past covariates, then known-future ones, or some columns of them.
            series: Its position in `ids`.
            columns: Which columns they are.

        Returns:
            float32 (T, C).
        """
        scaled = (values - self.x_mean[series, columns]) / self.x_scale[series, columns]
        return np.clip(scaled, -_FURTHEST, _FURTHEST).astype(np.float32)

    def inverse_y(self, values: Any, series: Any) -> Any:
        """Bring scaled targets, forecasts or quantiles back to the data's unit.

        Args:
            values: Tensor or array (B, ...) of scaled values, such as (B, H, 1) or (B, H, 1, Q).
            series: For each of the B entries its series: positions in `ids` (a batch's "series"), or ids.

        Returns:
            The same kind and shape as `values`.

        Raises:
            DataError: An id is unknown.
        """
        rows = self.positions(series)
        mean, scale = self.y_mean[rows], self.y_scale[rows]
        shape = (-1,) + (1,) * (values.ndim - 1)
        if isinstance(values, np.ndarray):
            return (values * scale.reshape(shape) + mean.reshape(shape)).astype(values.dtype)
        return values * values.new_tensor(scale.reshape(shape)) + values.new_tensor(mean.reshape(shape))

    def spread(self, series: Any) -> np.ndarray:
        """Return the scale of the target of some series, to bring absolute errors back to the data's unit.

        Args:
            series: Positions in `ids`, or ids.

        Returns:
            float64, one a series asked for.
        """
        return self.y_scale[self.positions(series)]

    def positions(self, series: Any) -> np.ndarray:
        """Return where series stand in `ids`: they are given by their ids, or by just that.

        Raises:
            DataError: An id is unknown.
        """
        values = np.asarray(series.cpu() if hasattr(series, "cpu") else series)
        return self._rows(values.ravel().tolist(), "scaler") if values.dtype.kind in "UO" else values.ravel()

    def select(self, ids: Sequence[str | int], source: str = "scaler") -> Scaler:
        """Return the scaler of some series, in the order asked for, for a set that holds only those.

        Args:
            ids: Their ids.
            source: Where they come from, for an error.

        Raises:
            DataError: An id is unknown.
        """
        rows = self._rows([str(name) for name in ids], source)
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            y_mean=self.y_mean[rows],
            y_scale=self.y_scale[rows],
            x_mean=self.x_mean[rows],
            x_scale=self.x_scale[rows],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain lists, fit for JSON."""
        state: dict[str, Any] = {"format_version": _FORMAT}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            state[item.name] = value.tolist() if isinstance(value, np.ndarray) else list(value)
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Scaler:
        """Return the scaler of a state.

        Args:
            state: What `state_dict` returned, also after a way through JSON.

        Returns:
            The same scaler.

        Raises:
            DataError: The state is of another version, or lacks a field.
        """
        if state.get("format_version") != _FORMAT:
            found = f"format_version {_FORMAT} was expected, found {state.get('format_version')!r}"
            raise DataError("scaler", "format_version", found, "fit the model again with this version")
        arrays: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            if item.name not in state:
                raise DataError("scaler", item.name, "the field is missing", "save the model again")
            value = state[item.name]
            arrays[item.name] = (
                tuple(value) if item.name.endswith(("ids", "names")) else np.array(value, dtype=np.float64)
            )
        shape = (len(arrays["ids"]), len(arrays["x_names"]))
        arrays["x_mean"], arrays["x_scale"] = (arrays[name].reshape(shape) for name in ("x_mean", "x_scale"))
        return cls(**arrays)

    def _rows(self, ids: Sequence[str], source: str) -> np.ndarray:
        where = {name: number for number, name in enumerate(self.ids)}
        for name in ids:
            if name not in where:
                found = f"a series of the training data was expected, found {name!r}"
                raise DataError(
                    source, "id", found, f"leave it out, or learn from it as well; {nearest(name, self.ids)}"
                )
        return np.array([where[name] for name in ids], dtype=np.int64)


def _statistics(values: np.ndarray) -> np.ndarray:
    """Return (2, C): mean and standard deviation of the columns; what only rounding makes vary has scale 1."""
    wide = values.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    flat = spread <= 1e-7 * np.abs(wide).max(axis=0, initial=0)
    return np.stack([mean, np.where(flat, 1.0, spread)])
