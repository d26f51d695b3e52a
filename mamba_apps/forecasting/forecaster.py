"""The Python API: fit a frame of series, predict what comes, with intervals."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.backtest import cross_validate, forecast_windows
from mamba_apps.forecasting.baselines import BASELINES, create_baseline, evaluate
from mamba_apps.forecasting.data import WindowData
from mamba_apps.forecasting.defaults import (
    default_lookback,
    default_max_steps,
    default_options,
    default_val_steps,
)
from mamba_apps.forecasting.intervals import (
    checked_levels,
    conformal_radius,
    level_names,
    level_quantiles,
)
from mamba_apps.forecasting.losses import MaskedLoss
from mamba_apps.forecasting.models import ForecastModel, Sizes, names, spec
from mamba_apps.forecasting.reading import check_holidays, read_with_calendar
from mamba_apps.forecasting.saving import Fitted, load_fitted
from mamba_apps.forecasting.task import ForecastTask
from mamba_apps.registry import suggest
from mamba_apps.training import make_trainer
from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet, WindowDataset

_CHECKS = 20


class Forecaster:
    """Forecast many series at once: fit on the past, predict the horizon, save and load.

    A part at the end of each series is held back to decide when to stop and which weights are best; for a baseline it
    gives the intervals.

    Args:
        model: A forecasting model ("patch", "smamba", "timemachine", "mambasimple", "itransformer", "patchtst",
            "dlinear") or a baseline ("ridge", "seasonal_naive", "seasonal_mean").
        horizon: Steps to forecast, at least 1.
        lookback: Steps of the past each forecast reads; None for four weeks of sub-daily data, four seasons of other
            data, or less where series are short.
        freq: A pandas offset alias such as "h", "D", "MS", or a whole number; None infers it.
        levels: Percentages of the prediction intervals, such as [80, 95].
        intervals: How a learned model has them: "quantile" (it forecasts their bounds) or "conformal" (around its
            point forecast, as far as its errors on the part held back reach). A baseline's are always conformal.
        model_options: The model's own options, such as {"mixer": "attention"}.
        id_col: The column of series ids.
        time_col: The column of timestamps.
        target_col: The column of targets.
        past: Columns known up to the present only.
        future: Columns known ahead; predict needs their future.
        static: Columns with one value a series.
        missing: What to do about missing steps: "error", "mask" (they do not count) or "seasonal" (filled in).
        season: The season in steps that missing values are filled from; None for the frequency's usual one.
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
        progress: Whether to draw a progress bar on a terminal.
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
        model_options: Mapping[str, Any] | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        past: Sequence[str] = (),
        future: Sequence[str] = (),
        static: Sequence[str] = (),
        missing: Literal["error", "mask", "seasonal"] = "error",
        season: int | None = None,
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
        progress: bool = True,
        alias: str | None = None,
    ) -> None:
        if model not in BASELINES and model not in names():
            raise UserError(
                f"unknown forecasting model {model!r}", suggest(model, [*names(), *BASELINES], "the models")
            )
        Sizes(1 if lookback is None else lookback, horizon)
        check_holidays(calendar, holidays)
        if val_steps is not None and val_steps < horizon:
            raise UserError(f"val_steps is {val_steps}, less than the horizon of {horizon}", "give at least that")
        self.model, self.alias = model, alias or model
        self.horizon, self.lookback = horizon, lookback
        if intervals not in ("quantile", "conformal"):
            raise UserError(f"intervals are {intervals!r}", "choose quantile or conformal")
        self.levels = checked_levels(levels)
        self.conformal = intervals == "conformal" or model in BASELINES
        MaskedLoss(loss, self._quantiles)
        self.model_options = dict(model_options or {})
        if model not in BASELINES:
            unknown = [name for name in self.model_options if name not in spec(model).options]
            if unknown:
                known = list(spec(model).options)
                raise UserError(
                    f"the forecasting model {model!r} has no option {unknown[0]!r}",
                    suggest(unknown[0], known, "its options"),
                )
        self._reading: dict[str, Any] = {
            "calendar": calendar,
            "holidays": holidays,
            "freq": freq,
            "id_col": id_col,
            "time_col": time_col,
            "target_col": target_col,
            "past": tuple(past),
            "future": tuple(future),
            "static": tuple(static),
            "missing": missing,
            "season": season,
        }
        self.loss, self.lr, self.max_steps, self.batch_size = loss, lr, max_steps, batch_size
        self.val_steps, self.patience, self.seed = val_steps, patience, seed
        self.accelerator, self.progress = accelerator, progress
        self._fitted: Fitted | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Scores on the part that was held back, in the data's unit: "val/mae" and "val/rmse"."""
        return dict(self._known().metrics or {})

    def fit(self, df: pd.DataFrame | Path | str) -> Forecaster:
        """Learn from series.

        Args:
            df: A frame in the long format (unique_id, ds, y and covariates), or a CSV or Parquet file of one.

        Returns:
            This forecaster.

        Raises:
            DataError: The data cannot be used; the error names series, place and remedy.
            UserError: An option does not fit the data.
        """
        self._fitted = self._fit(read_with_calendar(df, **self._reading))
        return self

    def cross_validation(
        self,
        df: pd.DataFrame | Path | str,
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
            series_set, self._fit, self.horizon, n_windows, self.horizon if step_size is None else step_size, refit
        )

    def _fit(self, series_set: SeriesSet) -> Fitted:
        _check_long_enough(series_set, self.lookback, self.horizon)
        val_steps = default_val_steps(series_set, self.horizon) if self.val_steps is None else self.val_steps
        lookback = self.lookback or default_lookback(series_set, self.horizon, val_steps)
        data = WindowData(
            series_set,
            lookback=lookback,
            horizon=self.horizon,
            val_steps=val_steps,
            batch_size=self.batch_size,
            short="skip",
            missing=self._reading["missing"],
            season=self._reading["season"],
        )
        options = {**default_options(self.model, series_set, lookback), **self.model_options}
        make = self._fit_baseline if self.model in BASELINES else self._fit_model
        return dataclasses.replace(make(data, options), alias=self.alias)

    def predict(
        self,
        futr_df: pd.DataFrame | Path | str | None = None,
        *,
        df: pd.DataFrame | Path | str | None = None,
    ) -> pd.DataFrame:
        """Forecast the steps after the end of each series.

        Args:
            futr_df: The future of the columns known ahead: the ids and timestamps of the horizon, no others. Not
                needed where there are no such columns; the calendar is computed.
            df: Series to continue instead of those of the fit, of the same ids or some of them, in the same format.

        Returns:
            One row a step: id, timestamp, forecast, and for each level "<name>-lo-80", "<name>-hi-80".

        Raises:
            DataError: The data cannot be used, or an id was not in the fit's data.
            UserError: Nothing was fitted, or a series is shorter than the lookback.
        """
        fitted = self._known()
        past = fitted.history if df is None else fitted.reading.read(df)
        if past is None:
            raise UserError("this model was saved without the end of its data", "pass df, the series to continue")
        sizes = fitted.network.sizes
        short = [one.id for one in past.series if len(one) < sizes.lookback]
        if short:
            raise UserError(
                f"{past.source}: series {short[0]!r} has fewer steps than the lookback of {sizes.lookback}",
                "pass a longer past, or fit with a shorter lookback",
            )
        scaler = fitted.scaler.select(past.ids)
        ahead = past.last(sizes.lookback).extend_future(futr_df, sizes.horizon)
        windows = WindowDataset(scaler.transform(ahead), sizes.lookback, sizes.horizon, origins="last")
        values = forecast_windows(fitted, windows, scaler)
        frame = past.future_frame(sizes.horizon)
        for place, name in enumerate(level_names(fitted.levels, self.alias)):
            frame[name] = values[..., place].reshape(-1)
        return frame

    def save(self, directory: str | Path) -> Path:
        """Save the fitted forecaster with the end of its data, so that `load` and `predict` go on from there.

        Returns:
            The folder.

        Raises:
            UserError: Nothing was fitted, or the folder cannot be written.
        """
        return self._known().save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Forecaster:
        """Load a forecaster that `save` or the training of a forecasting recipe saved.

        Raises:
            UserError: There is none, or it is damaged.
        """
        fitted = load_fitted(directory)
        reading = fitted.reading
        found = cls(
            fitted.model,
            horizon=fitted.network.sizes.horizon,
            lookback=fitted.network.sizes.lookback,
            freq=reading.columns["freq"],
            levels=fitted.levels,
            intervals="quantile" if fitted.radius_VH is None else "conformal",
            # The levels say which quantiles there are.
            model_options={name: value for name, value in fitted.options.items() if name != "quantiles"},
            missing=reading.missing,  # type: ignore[arg-type]
            season=reading.season,
            calendar=reading.calendar,
            holidays=reading.holidays,
            alias=fitted.alias,
            **reading.named,
        )
        found._fitted = fitted
        return found

    @property
    def _quantiles(self) -> tuple[float, ...] | None:
        """The quantiles that the model itself forecasts."""
        return level_quantiles(self.levels) if self.levels and not self.conformal else None

    def _known(self) -> Fitted:
        if self._fitted is None:
            raise UserError("this forecaster was not fitted", "call fit(df) first, or Forecaster.load(directory)")
        return self._fitted

    def _fit_model(self, data: WindowData, options: dict[str, Any]) -> Fitted:
        steps = default_max_steps(len(data.train), self.batch_size) if self.max_steps is None else self.max_steps
        with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
            trainer = make_trainer(
                run_dir=folder,
                max_steps=steps,
                accelerator=self.accelerator,
                monitor="val/mae",
                patience=self.patience,
                seed=self.seed,
                progress=self.progress,
                logger=False,
                gradient_clip_val=1.0,
                check_val_every_n_epoch=None,
                val_check_interval=max(steps // _CHECKS, 10),
            )
            task = ForecastTask(
                self.model,
                model_options=options,
                sizes=data.sizes,
                loss=self.loss,
                quantiles=self._quantiles,
                lr=self.lr,
            )
            trainer.fit(task, datamodule=data)
            best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
            metrics = trainer.validate(task, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)[0]
        found = task.fitted(data, {name: float(value) for name, value in metrics.items()})
        if not self.conformal or not self.levels:
            return found
        return dataclasses.replace(found, levels=self.levels, radius_VH=_radius(found.network, data, self.levels))

    def _fit_baseline(self, data: WindowData, options: dict[str, Any]) -> Fitted:
        network = create_baseline(self.model, data.sizes, **options)
        network.fit(data)
        metrics = {f"val/{name}": value for name, value in evaluate(network, data, data.val).items()}
        return Fitted(
            self.model,
            network.eval(),
            options,
            data.scaler,
            data.reading,
            levels=self.levels,
            radius_VH=_radius(network, data, self.levels) if self.levels else None,
            history=data.series_set.last(data.lookback),
            metrics=metrics,
        )


@torch.no_grad()
def _radius(network: ForecastModel, data: WindowData, levels: Sequence[float]) -> Tensor:
    errors, seen = [], []
    for batch in data.val_dataloader():
        errors.append((batch["future_y"] - network(batch))[..., 0])
        seen.append(batch["future_observed"][..., 0])
    return conformal_radius(torch.cat(errors), torch.cat(seen), levels)


def _check_long_enough(series_set: SeriesSet, lookback: int | None, horizon: int) -> None:
    need = (lookback or 1) + horizon
    for number in (series_set.lengths < need).nonzero()[0][:1]:
        raise DataError(
            series_set.source,
            f"series {series_set.ids[number]!r}",
            f"at least {need} steps were expected (lookback + horizon), found {series_set.lengths[number]}",
            "shorten lookback or horizon, or leave the series out",
        )
