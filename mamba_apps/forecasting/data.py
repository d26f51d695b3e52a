"""Windows of series for training, validation and test: each series' own tail is held back, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models import Sizes
from mamba_apps.forecasting.reading import Reading, check_holidays, read_with_calendar
from mamba_apps.training import ResumableLoader
from mamba_datasets.samples import metro_traffic_path
from mamba_datasets.series import Columns, Scaler, SeriesSet, WindowDataset, collate

# The part of a GPU's free memory that series may take there.
_SHARE = 0.25
_SAMPLES = {"metro_traffic": metro_traffic_path}


class WindowData(pl.LightningDataModule):
    """Windows of a set of series.

    The last ``test_steps`` of each series are its test part, the ``val_steps`` before them its validation part; a
    window belongs to the part in which its whole horizon lies, and looks back into the parts before. Scales are those
    of the training part.

    Args:
        series_set: The series as they were read, with their calendar.
        lookback: Steps of the past a forecast is made from.
        horizon: Steps to forecast.
        val_steps: Steps of each series' validation part, 0 or at least ``horizon``.
        test_steps: Steps of each series' test part, 0 or at least ``horizon``.
        batch_size: Windows a training batch.
        eval_batch_size: Windows a batch of validation and test.
        eval_windows: Most windows of validation and of test, evenly spread over the part; None takes all.
        short: What to do about series too short for a training window: "error" or "skip".
        workers: Processes that load data; windows are views of memory, so that none is usually best. Without any,
            windows for a GPU are gathered on it, where its memory holds the series.
        missing: How missing steps were read, for reading further data alike.
        season: The season in steps that they were filled from.

    Raises:
        UserError: If a number is out of range.
        DataError: If a series is too short.
    """

    def __init__(
        self,
        series_set: SeriesSet | None,
        *,
        lookback: int,
        horizon: int,
        val_steps: int = 0,
        test_steps: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        eval_windows: int | None = None,
        short: Literal["error", "skip"] = "error",
        workers: int = 0,
        missing: Literal["error", "mask", "seasonal"] = "error",
        season: int | None = None,
    ) -> None:
        super().__init__()
        Sizes(lookback, horizon)
        for name, steps in (("val_steps", val_steps), ("test_steps", test_steps)):
            if steps and steps < horizon:
                raise UserError(f"{name} is {steps}, less than the horizon of {horizon}", "give 0, or at least that")
        counts = (("batch_size", batch_size), ("eval_batch_size", eval_batch_size), ("eval_windows", eval_windows))
        for name, count in counts:
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise UserError(f"{name} is {count!r}", "give a whole number of at least 1")
        self._series_set = series_set
        self.lookback, self.horizon = lookback, horizon
        self.val_steps, self.test_steps = val_steps, test_steps
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.eval_windows, self.short, self.workers = eval_windows, short, workers
        self.missing, self.season = missing, season
        self._resident: Columns | None = None

    @cached_property
    def series_set(self) -> SeriesSet:
        """The series as they were read."""
        if self._series_set is None:
            raise UserError("there are no series", "give a SeriesSet, or use SeriesData")
        return self._series_set

    @cached_property
    def scaler(self) -> Scaler:
        """The scales of the training part."""
        return Scaler.fit(self.series_set.without_last(self.val_steps + self.test_steps))

    @cached_property
    def scaled(self) -> SeriesSet:
        """The series at the scale that models see."""
        return self.scaler.transform(self.series_set)

    @property
    def reading(self) -> Reading:
        """How further data for the same model is read."""
        return Reading.of(self.series_set, self.missing, self.season)

    @property
    def sizes(self) -> Sizes:
        """The shape of the problem, which models are made for."""
        found = self.series_set
        counts = (len(names) for names in (found.past_names, found.future_names, found.static_names))
        return Sizes(self.lookback, self.horizon, *counts)

    @cached_property
    def train(self) -> WindowDataset:
        """The training windows that have something to learn from."""
        part = self.scaled.without_last(self.val_steps + self.test_steps)
        return WindowDataset(part, self.lookback, self.horizon, short=self.short, drop_unobserved=True)

    @cached_property
    def val(self) -> WindowDataset:
        """The validation windows."""
        return self._tail(self.scaled.without_last(self.test_steps), self.val_steps, "val_steps")

    @cached_property
    def test(self) -> WindowDataset:
        """The test windows."""
        return self._tail(self.scaled, self.test_steps, "test_steps")

    def describe(self) -> str:
        """Return one line on the data."""
        found, steps = self.series_set, int(self.series_set.lengths.sum())
        name = Path(found.source).name if found.source != "DataFrame" else "DataFrame"
        return f"{name}: {len(found)} series, {steps:,} steps of {found.frequency}"

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, in an order that follows the run's seed and can be resumed anywhere."""
        # Lightning asks for them once the run is seeded: all models of one seed see the same windows in one order.
        return ResumableLoader(
            self._placed(self.train),
            self.batch_size,
            shuffle=True,
            seed=torch.initial_seed() % 2**32,
            collate_fn=collate,
            num_workers=self.workers,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation batches; none where there is no validation part."""
        return self._loader(self.val) if self.val_steps else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches; none where there is no test part."""
        return self._loader(self.test) if self.test_steps else []

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches."""
        return self.test_dataloader()

    def _tail(self, part: SeriesSet, steps: int, name: str) -> WindowDataset:
        if not steps:
            raise UserError(f"{name} is 0: there is no such part", f"give {name} of at least the horizon")
        tail = part.last(self.lookback + steps)
        return WindowDataset(tail, self.lookback, self.horizon, short="skip", at_most=self.eval_windows)

    def _loader(self, windows: WindowDataset) -> DataLoader[Any]:
        return self._placed(windows).loader(self.eval_batch_size, num_workers=self.workers)

    def _placed(self, windows: WindowDataset) -> WindowDataset:
        """Let windows be gathered on the trainer's GPU: assembled on the host they come too slowly for it."""
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        columns = self._columns_on(device) if device.type == "cuda" and not self.workers else None
        return windows if columns is None else windows.gathered_from(columns)

    def _columns_on(self, device: torch.device) -> Columns | None:
        if self._resident is None or self._resident.y.device != device:
            columns = Columns.of(self.scaled)
            free, _ = torch.cuda.mem_get_info(device)
            self._resident = columns.to(device) if columns.nbytes <= _SHARE * free else None
        return self._resident


class SeriesData(WindowData):
    """Windows of the series in a CSV or Parquet file.

    Args:
        source: A file in the long format, or the name of a sample that the package ships ("metro_traffic").
        lookback: Steps of the past a forecast is made from.
        horizon: Steps to forecast.
        freq: A pandas offset alias; None infers it.
        id_col: The column of series ids.
        time_col: The column of timestamps.
        target_col: The column of targets.
        past: Columns known up to the present only.
        future: Columns known ahead.
        static: Columns with one value a series.
        missing: What to do about missing steps: "error", "mask" or "seasonal".
        season: The season in steps that missing values are filled from; None for the frequency's usual one.
        calendar: Whether calendar features are covariates known ahead.
        holidays: "US" adds the federal holidays to them.
        val_steps: Steps of each series' validation part.
        test_steps: Steps of each series' test part.
        batch_size: Windows a training batch.
        eval_batch_size: Windows a batch of validation and test.
        eval_windows: Most windows of validation and of test, evenly spread over the part; None takes all.
        short: What to do about series too short for a training window: "error" or "skip".
        workers: Processes that load data.
    """

    def __init__(
        self,
        source: str,
        *,
        lookback: int,
        horizon: int,
        freq: str | int | None = None,
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
        val_steps: int = 0,
        test_steps: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        eval_windows: int | None = None,
        short: Literal["error", "skip"] = "error",
        workers: int = 0,
    ) -> None:
        super().__init__(
            None,
            lookback=lookback,
            horizon=horizon,
            val_steps=val_steps,
            test_steps=test_steps,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            eval_windows=eval_windows,
            short=short,
            workers=workers,
            missing=missing,
            season=season,
        )
        check_holidays(calendar, holidays)
        self.source = source
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
        }

    @cached_property
    def series_set(self) -> SeriesSet:
        """The series of the file; it is read when they are first asked for."""
        path = _SAMPLES[self.source]() if self.source in _SAMPLES else Path(self.source)
        return read_with_calendar(path, **self._reading)
