"""The Python API: fit a frame with holes, fill the holes of it or of another.

Dimensions in names: S series, T steps of a series, L steps of a window, C variates, K known columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.defaults import default_max_steps
from mamba_apps.forecasting.devices import device_for
from mamba_apps.forecasting.reading import check_holidays
from mamba_apps.imputation.fills import FILLS
from mamba_apps.imputation.gaps import fixed_gaps
from mamba_apps.imputation.network import ImputationNetwork
from mamba_apps.imputation.saving import Filler, load_filler, misfit
from mamba_apps.imputation.scales import Scales, default_window, known_columns
from mamba_apps.imputation.task import ImputationTask
from mamba_apps.imputation.windows import GapData, Steps, held_back
from mamba_apps.mixers import names
from mamba_apps.registry import check_class_options
from mamba_apps.training.best import fit_best
from mamba_datasets.report import nearest
from mamba_datasets.series import Table, read_variates

Frame: TypeAlias = pd.DataFrame | Path | str | Table
_TRAINING = ("lr", "max_steps", "batch_size", "patience", "seed")


class Imputer:
    """Fill the missing values of multivariate series: a value that was observed stays as it is.

    A network reads windows both ways: straight lines through the gaps, which values were observed, and the calendar.
    It learns to fill gaps that are drawn into what was observed; a part at the end of each series is held back to
    decide which weights are best.

    Args:
        model: A registered mixer ("mamba1", "mamba2", "attention"), or what fills without learning: "last" (the last
            observed value), "linear" (a straight line through the gap), "seasonal" (the mean at the same place of the
            season, and a straight line through what that leaves).
        columns: The columns to fill; None for all but those of ids and timestamps.
        freq: A pandas offset alias such as "h", "D", "MS", or a whole number; None infers it.
        window: Steps that the network reads at once, at least 2; None for a long season, or less where series are
            short.
        id_col: The column of series ids.
        time_col: The column of timestamps.
        tz: The time zone that local times are read in.
        calendar: Whether the calendar of the timestamps is known to the network.
        holidays: "US" adds the federal holidays to it.
        model_options: Further options of `ImputationNetwork`.
        lr: The highest learning rate.
        max_steps: Most optimiser steps; None for thirty passes over the windows, from 200 to 1,000 steps.
        batch_size: Windows a step.
        patience: Stop after so many of the twenty validations without a better one.
        seed: Of all randomness.
        accelerator: As in Lightning: "auto", "cpu", "gpu", ...
        progress: Whether to draw a progress bar on a terminal, and to say now and then elsewhere how far a training is.

    Raises:
        UserError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        model: str = "mamba1",
        *,
        columns: Sequence[str] | str | None = None,
        freq: str | int | None = None,
        window: int | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        tz: str | None = None,
        calendar: bool = True,
        holidays: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        lr: float = 2e-3,
        max_steps: int | None = None,
        batch_size: int = 32,
        patience: int = 5,
        seed: int = 0,
        accelerator: str = "auto",
        progress: bool = True,
    ) -> None:
        if model not in FILLS and model not in names():
            raise UserError(f"unknown imputer {model!r}", nearest(model, [*names(), *FILLS]))
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 2):
            raise UserError(f"window is {window!r}", "give a whole number of at least 2 steps")
        check_holidays(calendar, holidays)
        if model in FILLS and model_options:
            raise UserError(f"{model} has no options, and {list(model_options)} are given", "leave them out")
        if model in FILLS and holidays is not None:
            raise UserError(f"{model} reads no holidays", f"leave them out, or take one of {', '.join(names())}")
        check_class_options("the network", ImputationNetwork, model_options or (), given=("variates", "known", "mixer"))
        self.model, self.window = model, window
        self._reading: dict[str, Any] = {"columns": columns, "freq": freq, "id_col": id_col, "time_col": time_col}
        self._reading["tz"] = tz
        self.calendar = {"features": None, "holidays": holidays} if calendar else None
        self.model_options = dict(model_options or {})
        self.lr, self.max_steps, self.batch_size, self.patience = lr, max_steps, batch_size, patience
        self.seed, self.accelerator, self.progress = seed, accelerator, progress
        self._filler: Filler | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Scores on the part that was held back, in standard deviations: "val/mae" and "val/rmse"; none of a fill."""
        return dict(self._known().metrics)

    @property
    def parameters(self) -> int:
        """How many parameters were learned."""
        network = self._known().network
        return 0 if network is None else sum(parameter.numel() for parameter in network.parameters())

    def fit(self, df: Frame) -> Imputer:
        """Learn from series.

        Args:
            df: A frame in the long format (unique_id, ds and the columns), or a CSV or Parquet file of one; rows and
                values may be missing.

        Returns:
            This imputer.

        Raises:
            DataError: The data cannot be used, or a series has no value of a column to learn from.
            UserError: An option does not fit the data.
        """
        device = device_for(self.accelerator)
        data = read_variates(df, **self._reading)
        window = self.window or default_window(data)
        reading = {**self._reading, "columns": list(data.names), "freq": data.freq}
        learns = self.model not in FILLS
        kept = held_back(data.lengths, window) if learns else np.zeros(len(data), dtype=np.int64)
        scales = Scales.of(data, kept)
        sizes = {"variates": len(data.names), "known": 0}
        network, metrics = None, {}
        if learns:
            known, sizes["known"] = known_columns(data, self.calendar)
            batches = GapData(Steps(scales.scaled(data), known, window), self.batch_size)
            torch.manual_seed(self.seed)
            network = ImputationNetwork(sizes["variates"], sizes["known"], mixer=self.model, **self.model_options)
            metrics = self._train(network, batches)
            network.to(device).eval()
        self._filler = Filler(
            self.model,
            network,
            {**sizes, "window": window},
            self.model_options,
            reading,
            self.calendar,
            scales,
            metrics,
            {name: getattr(self, name) for name in _TRAINING},
        )
        return self

    def impute(self, df: Frame) -> pd.DataFrame:
        """Fill what is missing.

        Args:
            df: As in `fit`, of series that the fit knew.

        Returns:
            A row for each step from a series' first to its last, also where the data has none: id, timestamp and the
            columns. What was observed is what it was.

        Raises:
            DataError: The data cannot be used, or a series was not in the fit's data.
            UserError: Nothing was fitted.
        """
        filler = self._known()
        data = filler.read(df)
        return data.frame(filler.fill(data, data.values))

    def score(
        self, df: Frame, *, share: float = 0.2, run: int = 1, together: bool = False, seed: int = 0
    ) -> pd.DataFrame:
        """Hide some of what was observed, fill it, and say how far off that is.

        Args:
            df: As in `impute`; best a part that the fit has not seen.
            share: Which part of the steps is hidden on average, in (0, 1).
            run: Steps that are hidden in a row, at least 1.
            together: Whether all columns lose the same steps; else each its own.
            seed: Which steps those are.

        Returns:
            A row a column: "column", "hidden" (how many values), "mae", "rmse", and "scaled" (the mae in standard
            deviations of the fit's data).

        Raises:
            DataError: As in `impute`.
            UserError: Nothing was fitted, or a number is out of range.
        """
        if not 0 < share < 1:
            raise UserError(f"share is {share}", "give a number between 0 and 1")
        if isinstance(run, bool) or not isinstance(run, int) or run < 1:
            raise UserError(f"run is {run!r}", "give a whole number of at least 1 step")
        filler = self._known()
        data = filler.read(df)
        hidden = [
            fixed_gaps(torch.from_numpy(~np.isnan(values_TC))[None], share, run, together, seed + number)[0].numpy()
            for number, values_TC in enumerate(data.values)
        ]
        filled = filler.fill(data, [np.where(mask, np.nan, v) for mask, v in zip(hidden, data.values, strict=True)])
        error_NC = np.concatenate(
            [np.where(mask, f - v, np.nan) for mask, f, v in zip(hidden, filled, data.values, strict=True)]
        )
        std_SC = filler.scales.select(data)[1]
        scaled_NC = error_NC / np.repeat(std_SC, data.lengths, axis=0)
        count_C = (~np.isnan(error_NC)).sum(axis=0)
        if not count_C.all():
            name = data.names[int(count_C.argmin())]
            raise UserError(f"no value of {name!r} was hidden", "score on more data, or hide a larger share")
        return pd.DataFrame(
            {
                "column": data.names,
                "hidden": count_C,
                "mae": np.nanmean(np.abs(error_NC), axis=0),
                "rmse": np.sqrt(np.nanmean(error_NC**2, axis=0)),
                "scaled": np.nanmean(np.abs(scaled_NC), axis=0),
            }
        )

    def save(self, directory: str | Path) -> Path:
        """Save the fitted imputer.

        Returns:
            The folder.

        Raises:
            UserError: Nothing was fitted, or the folder cannot be written.
        """
        return self._known().save(directory)

    @classmethod
    def load(cls, directory: str | Path, *, accelerator: str = "auto", progress: bool = True) -> Imputer:
        """Load an imputer that `save` saved.

        Args:
            directory: The folder.
            accelerator: Where it computes from now on: "auto", "cpu", "gpu", ...
            progress: As in the class.

        Raises:
            UserError: There is none, it is damaged or of another format, or there is no such accelerator here.
        """
        device = device_for(accelerator)
        filler = load_filler(directory)
        calendar = filler.calendar
        try:
            found = cls(
                filler.model,
                window=filler.sizes["window"],
                calendar=calendar is not None,
                holidays=None if calendar is None else calendar["holidays"],
                model_options=filler.options,
                accelerator=accelerator,
                progress=progress,
                **filler.training,
                **filler.reading,
            )
        except (KeyError, TypeError, UserError) as error:
            raise misfit(directory, error) from None
        if filler.network is not None:
            filler.network.to(device)
        found._filler = filler
        return found

    def _known(self) -> Filler:
        if self._filler is None:
            raise UserError("this imputer was not fitted", "call fit(df) first, or Imputer.load(directory)")
        return self._filler

    def _train(self, network: ImputationNetwork, data: GapData) -> dict[str, float]:
        steps = default_max_steps(len(data.train), self.batch_size) if self.max_steps is None else self.max_steps
        _, metrics = fit_best(
            lambda: ImputationTask(network, lr=self.lr),
            data,
            max_steps=steps,
            accelerator=self.accelerator,
            patience=self.patience,
            seed=self.seed,
            progress=self.progress,
        )
        return metrics
