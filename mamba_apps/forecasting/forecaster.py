"""The Python API: fit a frame of series, predict what comes, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from mamba_apps.errors import UserError
from mamba_apps.forecasting.anomalies import score_anomalies
from mamba_apps.forecasting.backtest import FutureFrame, cross_validate, forecast_ahead, insample
from mamba_apps.forecasting.baselines import BASELINES
from mamba_apps.forecasting.defaults import default_options, least_steps
from mamba_apps.forecasting.devices import device_for
from mamba_apps.forecasting.fitting import Training, fit_baseline, fit_model, windows_to_learn
from mamba_apps.forecasting.intervals import checked_levels, level_quantiles
from mamba_apps.forecasting.losses import MaskedLoss
from mamba_apps.forecasting.models import Sizes, names, spec
from mamba_apps.forecasting.reading import check_holidays, read_with_calendar
from mamba_apps.forecasting.recent import check_calibration
from mamba_apps.forecasting.saving import Fitted, load_fitted, misfit
from mamba_apps.forecasting.stream import SeriesStream
from mamba_apps.registry import check_option_names
from mamba_datasets.report import nearest
from mamba_datasets.series import SeriesSet, Table

Frame: TypeAlias = pd.DataFrame | Path | str | Table
_TRAINING = tuple(item.name for item in dataclasses.fields(Training))


class Forecaster:
    """Forecast many series at once: fit on the past, predict the horizon, save and load.

    A part at the end of each series is held back to decide when to stop and which weights are best; for a baseline it
    gives the intervals.

    Args:
        model: A forecasting model ("patch", "anchor", "smamba", "timemachine", "mambasimple", "itransformer",
            "patchtst", "dlinear") or a baseline ("ridge", "repeat_last", "seasonal_naive", "seasonal_mean").
        horizon: Steps to forecast, at least 1.
        lookback: Steps of the past each forecast reads; None for four weeks of sub-daily data, four seasons of other
            data, or less where series are short.
        freq: A pandas offset alias such as "h", "D", "MS", or a whole number; None infers it.
        levels: Percentages of the prediction intervals, such as [80, 95].
        intervals: How a learned model has them: "quantile" (it forecasts their bounds) or "conformal" (around its
            point forecast, as far as its errors on the part held back reach). A baseline's are always conformal.
        calibration: Steps before each forecast by whose own forecasts its intervals are corrected, series by series:
            they follow what has lately been harder or easier to forecast, and a forecast takes that much longer. At
            most ``val_steps``; 0 leaves intervals as they were learned.
        model_options: The model's own options, such as {"mixer": "attention"}.
        id_col: The column of series ids.
        time_col: The column of timestamps.
        target_col: The column of targets.
        tz: The time zone that local times are read in, such as "Europe/Berlin", where the clock may change; others are
            converted into it.
        past: Columns known up to the present only.
        future: Columns known ahead; predict needs their future.
        static: Columns with one value a series.
        missing: What to do about missing steps: "error", "mask" (they do not count) or "seasonal" (filled in).
        season: The season in steps that missing values are filled from; None for the frequency's usual one.
        short: What to do about series too short for a whole lookback: "error", or "pad" (steps that nobody observed are
            put before their start, so that a window may reach beyond it).
        calendar: Whether the calendar of the timestamps is known to the model.
        holidays: "US" adds the federal holidays to it.
        loss: "mae", "mse" or "huber"; quantile intervals need "mae", which becomes the pinball loss.
        lr: The highest learning rate.
        max_steps: Most optimiser steps; None for thirty passes over the windows, from 200 to 1,000 steps.
        batch_size: Windows a step.
        val_steps: Steps held back at the end of each series, at least a horizon; None for a tenth of the shortest.
        patience: Stop after so many of the twenty validations without a better one.
        seed: Of all randomness.
        accelerator: As in Lightning: "auto", "cpu", "gpu", ...
        graph: Whether training on a GPU replays its steps from one CUDA graph, which makes small models several times
            faster; elsewhere it changes nothing.
        progress: Whether to draw a progress bar on a terminal, and to say now and then elsewhere how far a training is.
        alias: The forecast's column name; None for the model's name.

    Raises:
        UserError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        model: str = "patch",
        *,
        horizon: int,
        lookback: int | None = None,
        freq: str | int | None = None,
        levels: Sequence[float] = (),
        intervals: Literal["quantile", "conformal"] = "quantile",
        calibration: int = 0,
        model_options: Mapping[str, Any] | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        tz: str | None = None,
        past: Sequence[str] = (),
        future: Sequence[str] = (),
        static: Sequence[str] = (),
        missing: Literal["error", "mask", "seasonal"] = "error",
        season: int | None = None,
        short: Literal["error", "pad"] = "error",
        calendar: bool = True,
        holidays: str | None = None,
        loss: str = "mae",
        lr: float = 2e-3,
        max_steps: int | None = None,
        batch_size: int = 64,
        val_steps: int | None = None,
        patience: int = 5,
        seed: int = 0,
        accelerator: str = "auto",
        graph: bool = False,
        progress: bool = True,
        alias: str | None = None,
    ) -> None:
        if model not in BASELINES and model not in names():
            raise UserError(f"unknown forecasting model {model!r}", nearest(model, [*names(), *BASELINES]))
        Sizes(1 if lookback is None else lookback, horizon)
        check_holidays(calendar, holidays)
        if val_steps is not None and val_steps < horizon:
            raise UserError(f"val_steps is {val_steps}, less than the horizon of {horizon}", "give at least that")
        self.model, self.alias = model, alias or model
        self.horizon, self.lookback = horizon, lookback
        if short not in ("error", "pad"):
            raise UserError(f"short is {short!r}", "choose error or pad")
        self.short = short
        if intervals not in ("quantile", "conformal"):
            raise UserError(f"intervals are {intervals!r}", "choose quantile or conformal")
        self.levels = checked_levels(levels)
        self.conformal = intervals == "conformal" or model in BASELINES
        check_calibration(calibration, horizon, self.levels)
        self.calibration = calibration
        MaskedLoss(loss, self._quantiles)
        self.model_options = dict(model_options or {})
        if model not in BASELINES:
            check_option_names(f"the forecasting model {model!r}", self.model_options, spec(model).options)
        self._reading: dict[str, Any] = {
            "calendar": calendar,
            "holidays": holidays,
            "freq": freq,
            "id_col": id_col,
            "time_col": time_col,
            "target_col": target_col,
            "past": past,
            "future": future,
            "static": static,
            "missing": missing,
            "season": season,
            "tz": tz,
        }
        self.loss, self.lr, self.max_steps, self.batch_size = loss, lr, max_steps, batch_size
        self.val_steps, self.patience, self.seed = val_steps, patience, seed
        self.accelerator, self.graph, self.progress = accelerator, graph, progress
        self._fitted: Fitted | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Scores on the part that was held back, in the data's unit: "val/mae" and "val/rmse"."""
        return dict(self._known().metrics or {})

    def fit(self, df: Frame, *, warm_start: bool = False) -> Forecaster:
        """Learn from series.

        Args:
            df: A frame in the long format (unique_id, ds, y and covariates), or a CSV or Parquet file of one.
            warm_start: Whether training begins with the weights of the last fit, or of the forecaster that was loaded;
                lookback, columns and categories are then those of that fit, the series may be others.

        Returns:
            This forecaster.

        Raises:
            DataError: The data cannot be used; the error names series, place and remedy.
            UserError: An option does not fit the data, or there are no weights to begin with.
        """
        if not warm_start:
            self._fitted = self._fit(read_with_calendar(df, **self._reading))
            return self
        before = self._known()
        if self.model in BASELINES:
            raise UserError(f"{self.model} has no weights to begin with", "fit it without warm_start")
        self._fitted = self._fit(before.reading.read(df), start=before)
        return self

    def update(self, df: Frame) -> Forecaster:
        """Take new observations of the series, so that `predict` goes on from their end; nothing is learned.

        Args:
            df: The rows that follow the end of each series, or of some of them, with the columns of the fit.

        Returns:
            This forecaster.

        Raises:
            DataError: A series is unknown, its rows do not follow its end, or they cannot be used.
            UserError: Nothing was fitted, or the model was saved without the end of its data.
        """
        fitted = self._known()
        history = self._history(fitted)
        # Rows at the start of new observations have no season of their own to be filled from, the series have one.
        missing = "mask" if fitted.reading.missing == "seasonal" else fitted.reading.missing
        new = dataclasses.replace(fitted.reading, missing=missing).read(df)
        longer = history.append(new, fitted.reading.missing).last(fitted.memory)
        self._fitted = dataclasses.replace(fitted, history=longer)
        return self

    def cross_validation(
        self,
        df: Frame,
        *,
        n_windows: int = 1,
        step_size: int | None = None,
        refit: bool | int = False,
    ) -> pd.DataFrame:
        """Forecast from cuts in the past, each as if it were the present; this forecaster itself stays as it is.

        The last cut is a horizon before the end of each series, and the others lie before it.

        Args:
            df: As in `fit`.
            n_windows: How many cuts, at least 1.
            step_size: Steps from one cut to the next, at least 1; None for the horizon.
            refit: Whether to fit anew at every cut, or at every so many-th; else once, before the first.

        Returns:
            One row a step: id, timestamp, "cutoff" (the last timestamp that the forecast knows), the observed target
            (NaN where there is none) and the columns of `predict`.

        Raises:
            DataError: The data cannot be used, or a series is too short for the first cut.
            UserError: A number is out of range.
        """
        series_set = read_with_calendar(df, **self._reading)
        return cross_validate(
            series_set,
            self._fit,
            self.horizon,
            n_windows,
            self.horizon if step_size is None else step_size,
            refit,
            least_steps(self.lookback, self.horizon, padded=self.short == "pad"),
        )

    def predict_insample(self, df: Frame, *, step_size: int | None = None) -> pd.DataFrame:
        """Forecast within series as the fitted forecaster is, from every so many-th step of each.

        On the series of the fit this shows how well it has learned them, not how well it forecasts what it has not
        seen: `cross_validation` does.

        Args:
            df: As in `fit`, of series that the fit knew.
            step_size: Steps from one cut to the next, counted back from the end; None for the horizon, which forecasts
                each step once. The first ``lookback`` steps of a series have no forecast.

        Returns:
            As `cross_validation`.

        Raises:
            DataError: The data cannot be used, or a series is too short for a forecast.
            UserError: Nothing was fitted, or the number is out of range.
        """
        fitted = self._known()
        return insample(fitted, fitted.reading.read(df), self.horizon if step_size is None else step_size)

    def anomalies(self, df: Frame, *, level: float | None = None) -> pd.DataFrame:
        """Score each observation by the interval that was forecast for it, from at most a horizon before.

        Forecasts look back on what was observed, anomalies too: a gross one can make the next horizons' scores worse.

        Args:
            df: As in `predict_insample`.
            level: The interval's level, one of `levels`; None for the widest.

        Returns:
            One row a step: id, timestamp, observed target, forecast, the interval's two ends, "score" (how far the
            observation lies from the forecast, in parts of the way to the interval's end on that side; negative below;
            NaN where nothing was observed) and "anomaly" (whether it lies outside).

        Raises:
            DataError: The data cannot be used, or a series is too short for a forecast.
            UserError: Nothing was fitted, or there is no such interval.
        """
        fitted = self._known()
        return score_anomalies(fitted, self.predict_insample(df), level)

    def stream(self, series: str | int | None = None) -> SeriesStream:
        """Follow one series: it takes one observation at a time and forecasts from there, at constant cost.

        Args:
            series: Its id; None where there is one series only.

        Returns:
            The stream, at the end of the series; this forecaster stays where it is.

        Raises:
            DataError: There is no such series.
            UserError: Nothing was fitted, or the model was saved without the end of its data.
        """
        fitted = self._known()
        history = self._history(fitted)
        if series is None and len(history) > 1:
            raise UserError(f"there are {len(history)} series", "name the one to follow: stream(series=...)")
        return SeriesStream(fitted, history.select([history.keys[0] if series is None else series]))

    def predict(self, futr_df: FutureFrame = None, *, df: Frame | None = None) -> pd.DataFrame:
        """Forecast the steps after the end of each series.

        Args:
            futr_df: The future of the columns known ahead: the ids and timestamps of the horizon (`future_frame`), no
                others. Not needed where there are no such columns; the calendar is computed.
            df: Series to continue instead of those of the fit, of the same ids or some of them, in the same format.

        Returns:
            One row a step: id, timestamp, forecast, and for each level "<name>-lo-80", "<name>-hi-80".

        Raises:
            DataError: The data cannot be used, or an id was not in the fit's data.
            UserError: Nothing was fitted, or a series is shorter than the lookback.
        """
        fitted = self._known()
        past = self._history(fitted) if df is None else fitted.reading.read(df)
        return forecast_ahead(fitted, past, futr_df)

    def future_frame(self, *, df: Frame | None = None) -> pd.DataFrame:
        """Return the ids and timestamps of the horizon, to which the columns known ahead are to be added for `predict`.

        Args:
            df: As in `predict`.

        Raises:
            DataError: The data cannot be used, or an id was not in the fit's data.
            UserError: Nothing was fitted.
        """
        fitted = self._known()
        past = self._history(fitted) if df is None else fitted.reading.read(df)
        return past.future_frame(self.horizon)

    def save(self, directory: str | Path) -> Path:
        """Save the fitted forecaster with the end of its data, so that `load` and `predict` go on from there.

        Returns:
            The folder.

        Raises:
            UserError: Nothing was fitted, or the folder cannot be written.
        """
        return self._known().save(directory)

    @classmethod
    def load(cls, directory: str | Path, *, accelerator: str = "auto", progress: bool = True) -> Forecaster:
        """Load a forecaster that `save` or the training of a forecasting recipe saved.

        Args:
            directory: The folder.
            accelerator: Where it computes from now on, whatever it was trained on: "auto", "cpu", "gpu", ...
            progress: As in the class.

        Raises:
            UserError: There is none, it is damaged or of another format, or there is no such accelerator here.
        """
        fitted = load_fitted(directory)
        device_for(accelerator)
        try:
            found = cls(**fitted.arguments, accelerator=accelerator, progress=progress)
        except (KeyError, TypeError, UserError) as error:
            raise misfit(directory, error) from None
        found._fitted = found._placed(fitted)
        return found

    @property
    def _quantiles(self) -> tuple[float, ...] | None:
        """The quantiles that the model itself forecasts."""
        return level_quantiles(self.levels) if self.levels and not self.conformal else None

    def _known(self) -> Fitted:
        if self._fitted is None:
            raise UserError("this forecaster was not fitted", "call fit(df) first, or Forecaster.load(directory)")
        return self._fitted

    def _history(self, fitted: Fitted) -> SeriesSet:
        if fitted.history is None:
            raise UserError("this model was saved without the end of its data", "pass df, the series to continue")
        return fitted.history

    def _placed(self, fitted: Fitted) -> Fitted:
        fitted.network.to(device_for(self.accelerator))
        return fitted

    def _fit(self, series_set: SeriesSet, start: Fitted | None = None) -> Fitted:
        device_for(self.accelerator)  # before hours of training, not after
        lookback, pads = self.lookback if start is None else start.network.sizes.lookback, self.short == "pad"
        data = windows_to_learn(
            series_set,
            lookback=lookback,
            horizon=self.horizon,
            val_steps=self.val_steps,
            calibration=self.calibration,
            pads=pads,
            batch_size=self.batch_size,
            missing=self._reading["missing"],
            season=self._reading["season"],
        )
        settings = {name: getattr(self, name) for name in _TRAINING}
        options = {**default_options(self.model, series_set, data.lookback), **self.model_options}
        if start is not None:
            options = {name: value for name, value in start.options.items() if name != "quantiles"}
        if self.model in BASELINES:
            found = fit_baseline(self.model, data, options, self.levels)
        else:
            found = fit_model(
                self.model,
                data,
                options,
                Training(**settings),
                quantiles=self._quantiles,
                levels=self.levels if self.conformal else (),
                start=None if start is None else start.network,
            )
        kept = {name: value for name, value in settings.items() if name not in ("accelerator", "progress")}
        kept["val_steps"] = self.val_steps
        found = dataclasses.replace(
            found,
            reading=dataclasses.replace(found.reading, tz=self._reading["tz"]),
            alias=self.alias,
            calibration=self.calibration,
            pads=pads,
            training=kept,
        )
        return self._placed(dataclasses.replace(found, history=data.series_set.last(found.memory)))
