"""Many series in memory: flat float32 columns, and views of them cut by time.

Letters: N rows of all series together, T steps of one series, P past covariates, F known-future ones, S static ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series import future, joined
from mamba_datasets.series.calendar import calendar_columns
from mamba_datasets.series.frequency import Frequency
from mamba_datasets.series.table import Table

DEFAULT_COLUMNS = {"id_col": "unique_id", "time_col": "ds", "target_col": "y", "past": (), "future": (), "static": ()}


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a set; its arrays are views.

    Args:
        id: Its id as text.
        key: Its id as it stands in the data: text or a whole number.
        index: The timestamps (DatetimeIndex) or whole numbers (RangeIndex) of its T steps, without gaps.
        y: float32 (T,) the target; finite everywhere, filled where nothing was observed.
        observed: bool (T,) whether the target counts: False where it was missing and is only filled in as an input.
        past: float32 (T, P) covariates known up to the present only.
        future: float32 (T, F) covariates known ahead.
        static: float32 (S,) covariates of the whole series.
    """

    id: str
    key: str | int
    index: pd.Index
    y: np.ndarray
    observed: np.ndarray
    past: np.ndarray
    future: np.ndarray
    static: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    @property
    def start(self) -> Any:
        """The first step: a Timestamp or a whole number."""
        return self.index[0]


@dataclass(frozen=True, eq=False)
class SeriesSet:
    """Series of one frequency with the same covariates.

    Slices (`before`, `since`, `between`, `last`) share the memory of the set they are cut from.

    Args:
        y: float32 (N,) the targets of all series, one after the other.
        observed: bool (N,) whether a target counts.
        x: float32 (N, P + F) past covariates, then known-future ones.
        static: float32 (series, S).
        bounds: int64 (series, 2) the first row of each series in the columns above and the one after its last.
        indexes: The timestamps of each series.
        keys: The ids as they stand in the data.
        freq: The frequency: a pandas offset alias or a whole number.
        past_names: Names of the P past covariates.
        future_names: Names of the F known-future ones, calendar features last.
        static_names: Names of the S static ones.
        categories: The categories of each column that was not numeric.
        binary: Covariates that are 0 or 1, or a calendar feature: never scaled.
        calendar: What `with_calendar` was called with, or None.
        columns: What `read_series` was told of the columns: id_col, time_col, target_col, past, future, static.
        season: The season in steps that missing values were filled with, and None where no season is usual.
        filled: For each series (by id) how many steps have a filled target; series without one are left out.
        notes: What the reader did and says openly.
        source: The file, or "DataFrame".
    """

    y: np.ndarray
    observed: np.ndarray
    x: np.ndarray
    static: np.ndarray
    bounds: np.ndarray
    indexes: tuple[pd.Index, ...]
    keys: tuple[str | int, ...]
    freq: str | int
    past_names: tuple[str, ...] = ()
    future_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    binary: frozenset[str] = frozenset()
    calendar: Mapping[str, Any] | None = None
    columns: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_COLUMNS))
    season: int | None = None
    filled: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = "DataFrame"

    @cached_property
    def ids(self) -> list[str]:
        """The ids as text, in the order of the data."""
        return [str(key) for key in self.keys]

    @cached_property
    def positions(self) -> dict[str, int]:
        """The number of each id."""
        return {name: number for number, name in enumerate(self.ids)}

    @cached_property
    def series(self) -> list[Series]:
        """The series, as views."""
        return [self._view(number) for number in range(len(self.keys))]

    @cached_property
    def frequency(self) -> Frequency:
        """The frequency with its grid."""
        return Frequency.parse(self.freq, self.source)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (series,): the number of steps of each series."""
        return self.bounds[:, 1] - self.bounds[:, 0]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Series]:
        return iter(self.series)

    def __getitem__(self, key: str | int) -> Series:
        """Return the series of an id; unknown ids are a DataError with the nearest one."""
        if str(key) not in self.positions:
            raise DataError(self.source, "id", f"there is no series {key!r}", nearest(key, self.ids))
        return self.series[self.positions[str(key)]]

    def __repr__(self) -> str:
        covariates = f"past={list(self.past_names)}, future={list(self.future_names)}, static={list(self.static_names)}"
        return f"SeriesSet({len(self)} series, {int(self.lengths.sum())} steps, freq={self.freq!r}, {covariates})"

    def _view(self, number: int) -> Series:
        rows = slice(*self.bounds[number])
        x, split = self.x[rows], len(self.past_names)
        return Series(
            id=self.ids[number],
            key=self.keys[number],
            index=self.indexes[number],
            y=self.y[rows],
            observed=self.observed[rows],
            past=x[:, :split],
            future=x[:, split:],
            static=self.static[number],
        )

    def bound(self, timestamp: Any) -> Any:
        """Read a timestamp as one that this set's timestamps compare with.

        Args:
            timestamp: A Timestamp, or text or datetime that is one, or a whole number. Without a time zone it is local
                time of the set's zone.

        Returns:
            A Timestamp in the set's zone, or a whole number.

        Raises:
            DataError: It is no timestamp, or has a zone where the set has none.
        """
        if self.frequency.kind == "integer":
            if isinstance(timestamp, (int, np.integer)):
                return int(timestamp)
            found = f"a whole number was expected, found {timestamp!r}"
            raise DataError(self.source, "time bound", found, "pass a whole number: the series count steps")
        bound = None
        if not isinstance(timestamp, (int, float, np.number)):
            # Every class of timestamp that pandas reads is let in, and so is what it raises for the others.
            with contextlib.suppress(ValueError, TypeError):
                bound = pd.Timestamp(timestamp)
        if bound is None or bound is pd.NaT:
            found = f"a timestamp was expected, found {timestamp!r}"
            raise DataError(self.source, "time bound", found, "pass a timestamp such as '2020-01-31 13:00'")
        zone = next((index.tz for index in self.indexes if isinstance(index, pd.DatetimeIndex)), None)
        if zone is None and bound.tz is not None:
            found = f"a timestamp without a time zone was expected, found {timestamp}"
            raise DataError(self.source, "time bound", found, "leave the zone out, as in the data")
        if zone is None:
            return bound
        if bound.tz is not None:
            return bound.tz_convert(zone)
        return bound.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")

    def before(self, timestamp: Any) -> SeriesSet:
        """Return the steps before a timestamp, without copying."""
        bound = self.bound(timestamp)
        return self._cut([(0, int(index.searchsorted(bound))) for index in self.indexes])

    def since(self, timestamp: Any) -> SeriesSet:
        """Return the steps at a timestamp and later, without copying."""
        bound = self.bound(timestamp)
        return self._cut([(int(index.searchsorted(bound)), len(index)) for index in self.indexes])

    def between(self, first: Any, last: Any) -> SeriesSet:
        """Return the steps at `first` and later, before `last`, without copying."""
        return self.since(first).before(last)

    def last(self, steps: int) -> SeriesSet:
        """Return the last steps of each series, without copying."""
        return self._cut([(max(0, len(index) - steps), len(index)) for index in self.indexes])

    def without_last(self, steps: int) -> SeriesSet:
        """Return all but the last steps of each series, without copying."""
        return self._cut([(0, max(0, len(index) - steps)) for index in self.indexes])

    def cut(self, first: Sequence[int] | np.ndarray, last: Sequence[int] | np.ndarray) -> SeriesSet:
        """Return the steps from ``first`` to before ``last`` of each series, one number a series, without copying."""
        return self._cut([(int(a), int(b)) for a, b in zip(first, last, strict=True)])

    def lead_in(self, counts: Sequence[int] | np.ndarray) -> SeriesSet:
        """Return the set with steps before the start of each series that nobody observed.

        Args:
            counts: How many steps a series.

        Returns:
            A set with columns of its own.
        """
        return joined.lead_in(self, [int(count) for count in counts])

    def append(self, new: SeriesSet, missing: str = "error") -> SeriesSet:
        """Return the set with new observations after the end of its series.

        Args:
            new: Series of this set, or some of them, with the same columns; each begins where it ended here.
            missing: What to do where it begins later: "error", "mask" or "seasonal" as in `read_series`.

        Returns:
            A set with columns of its own; cut with `last` first to copy less.

        Raises:
            DataError: A series is unknown, begins too early or too late, or its static covariates have changed.
        """
        return joined.append(self, new, missing)

    def select(self, ids: Sequence[str | int]) -> SeriesSet:
        """Return some series, in the order asked for, without copying their steps."""
        numbers = [self.positions[self[name].id] for name in ids]
        return dataclasses.replace(
            self,
            static=self.static[numbers],
            bounds=self.bounds[numbers],
            indexes=tuple(self.indexes[number] for number in numbers),
            keys=tuple(self.keys[number] for number in numbers),
        )

    def _cut(self, ranges: Sequence[tuple[int, int]]) -> SeriesSet:
        """Return the steps of each series in a range of its own."""
        bounds = self.bounds[:, :1] + np.array(ranges, dtype=np.int64).reshape(-1, 2)
        indexes = tuple(index[first:last] for index, (first, last) in zip(self.indexes, ranges, strict=True))
        return dataclasses.replace(self, bounds=bounds, indexes=indexes)

    def with_calendar(self, features: Sequence[str] | None = None, holidays: str | None = None) -> SeriesSet:
        """Return the set with calendar features as further known-future covariates.

        Args:
            features: As in `calendar_frame`; None takes those that fit the frequency.
            holidays: "US" adds the federal holidays and the days around them.

        Returns:
            A set that shares the targets with this one.

        Raises:
            DataError: The set has calendar features or columns of their names already, or a feature is unknown.
        """
        if self.calendar is not None:
            found = f"no calendar features were expected, found {self.calendar}"
            raise DataError(self.source, "calendar", found, "call with_calendar once, on the set as it was read")
        calendar = {"features": None if features is None else tuple(features), "holidays": holidays}
        names, parts = calendar_columns(self.indexes, self.freq, calendar)
        taken = [name for name in names if name in (*self.past_names, *self.future_names)]
        if taken:
            found = f"no covariate called {taken[0]!r} was expected beside the calendar's"
            raise DataError(self.source, "calendar", found, "rename that column, or choose other features")
        x = np.zeros((len(self.x), self.x.shape[1] + len(names)), dtype=np.float32)
        x[:, : self.x.shape[1]] = self.x
        for (first, last), part in zip(self.bounds, parts, strict=True):
            x[first:last, self.x.shape[1] :] = part
        return dataclasses.replace(
            self,
            x=x,
            future_names=(*self.future_names, *names),
            binary=self.binary | frozenset(names),
            calendar=calendar,
        )

    def future_frame(self, horizon: int) -> pd.DataFrame:
        """Return the ids and timestamps of the steps to come, as `extend_future` needs them.

        Args:
            horizon: The number of steps.

        Returns:
            A frame with the id and time columns, `horizon` rows a series.
        """
        return future.future_frame(self, horizon)

    def extend_future(self, futr_df: pd.DataFrame | Path | str | Table | None, horizon: int) -> SeriesSet:
        """Return the set with the steps to come, their known covariates filled in, their targets unobserved.

        A window with origins="last" then forecasts those steps.

        Args:
            futr_df: A frame or file of the known-future covariates as they were read, in the long format: exactly the
                ids and timestamps of `future_frame`; local times may leave the time zone out. None where there are no
                such covariates besides the calendar, which is computed.
            horizon: The number of steps.

        Returns:
            A set with columns of its own; cut with `last` first to copy less.

        Raises:
            DataError: Ids, timestamps or columns are missing or too many, or values cannot be used.
        """
        return future.extend_future(self, futr_df, horizon)

    def to_frame(self) -> pd.DataFrame:
        """Return ids, timestamps and targets in the long format, with NaN where nothing was observed."""
        id_col, time_col, target_col = (self.columns[name] for name in ("id_col", "time_col", "target_col"))
        parts = [
            pd.DataFrame({id_col: one.key, time_col: one.index, target_col: np.where(one.observed, one.y, np.nan)})
            for one in self.series
        ]
        return pd.concat(parts, ignore_index=True)
