"""The step of a series: pandas' offset aliases or a whole number, its grid of timestamps, its season, its inference."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset, Day, Tick

from mamba_datasets.errors import DataError

# pandas renamed these in 2.2: the old spelling warns there and fails in 3.0, so it is refused the same way in both.
_RENAMED = {
    "H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE",
    "BM": "BME", "BQ": "BQE", "BA": "BYE", "BY": "BYE", "AS": "YS", "BAS": "BYS", "SM": "SME", "CBM": "CBME",
    "BH": "bh", "CBH": "cbh",
}  # fmt: skip
_EXAMPLES = "'15min', 'h', 'D', 'B', 'W-SUN', 'MS', or a whole number for whole-number steps"
_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND


@dataclass(frozen=True)
class Frequency:
    """The distance between two steps of a series.

    Args:
        name: A pandas offset alias in its canonical spelling, or a whole number of at least 1.
    """

    name: str | int

    @classmethod
    def parse(cls, freq: str | int | Frequency, path: str = "freq") -> Frequency:
        """Read a frequency.

        Args:
            freq: A pandas offset alias ("h", "15min", "D", "B", "W-SUN", "MS", …) or a whole number.
            path: The file or frame it is meant for, for the error.

        Returns:
            The frequency with its canonical name.

        Raises:
            DataError: It is no alias of pandas, or not positive.
        """
        if isinstance(freq, Frequency):
            return freq
        if isinstance(freq, (int, np.integer)) and not isinstance(freq, bool):
            if freq < 1:
                raise DataError(path, "freq", f"a step of at least 1 was expected, found {freq}", "pass freq=1 or more")
            return cls(int(freq))
        if not isinstance(freq, str):
            raise DataError(path, "freq", f"text or a whole number was expected, found {freq!r}", f"use {_EXAMPLES}")
        unit = re.fullmatch(r"\s*(-?\d*)\s*([A-Za-z]+)(-\w+)?\s*", freq)
        if unit and unit[2] in _RENAMED:
            new = f"{unit[1]}{_RENAMED[unit[2]]}{unit[3] or ''}"
            raise DataError(path, "freq", f"{freq!r} is a spelling that pandas has dropped", f"write freq={new!r}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                offset = to_offset(freq)
        except (ValueError, KeyError, Warning):
            offset = None
        if offset is None:
            raise DataError(path, "freq", f"{freq!r} is not a frequency that pandas knows", f"use {_EXAMPLES}")
        if offset.n < 1:
            raise DataError(path, "freq", f"a positive frequency was expected, found {freq!r}", f"use {_EXAMPLES}")
        return cls(offset.freqstr)

    @cached_property
    def offset(self) -> BaseOffset:
        """The pandas offset; only for frequencies of timestamps."""
        offset = to_offset(str(self.name))
        assert offset is not None  # noqa: S101  (parse has read this very name)
        return offset

    @cached_property
    def kind(self) -> Literal["integer", "tick", "calendar"]:
        """How steps are counted: whole numbers, a fixed duration, or days and longer by the local calendar.

        A day is a calendar day (23 or 25 hours where daylight saving changes) although pandas 2 calls it a fixed tick.
        """
        if isinstance(self.name, int):
            return "integer"
        return "tick" if isinstance(self.offset, Tick) and not isinstance(self.offset, Day) else "calendar"

    @cached_property
    def nanoseconds(self) -> int | None:
        """The nominal length of a step in nanoseconds; None for whole numbers."""
        if self.kind == "integer":
            return None
        if self.kind == "tick":
            return int(self.offset.nanos)
        first, second = pd.date_range("2000-01-03", periods=2, freq=self.offset)
        return int((second - first) / pd.Timedelta(1, "ns"))

    def __str__(self) -> str:
        return str(self.name) if self.kind == "integer" else f"'{self.name}'"

    @property
    def season(self) -> int | None:
        """The usual season in steps: a day for sub-daily data, a week for days, a year for longer steps; else None."""
        if self.kind == "integer":
            return None
        if self.kind == "tick":
            step = self.nanoseconds or 0
            # Below a minute a day is too long to be one season of a window: an hour is.
            length = _DAY if step >= 60 * _SECOND else 3600 * _SECOND
            return length // step if step and length % step == 0 and length > step else None
        base = re.match(r"[A-Za-z]+", self.offset.name)
        per_year = {"W": 52, "MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4, "SMS": 24}
        per_cycle = {"D": 7, "B": 5, "C": 5, "SME": 24, **per_year}.get(base[0] if base else "")
        if per_cycle is None or per_cycle % self.offset.n:
            return None
        return per_cycle // self.offset.n if per_cycle > self.offset.n else None

    def range(self, start: pd.Timestamp | int, periods: int) -> pd.Index:
        """Return the grid that begins at a timestamp.

        Args:
            start: The first step; a timestamp that lies on the grid.
            periods: The number of steps.

        Returns:
            A DatetimeIndex in the time zone and unit of `start`, or a RangeIndex.
        """
        if isinstance(self.name, int):
            return pd.RangeIndex(int(start), int(start) + self.name * periods, self.name)
        assert isinstance(start, pd.Timestamp)  # noqa: S101  (a whole number went the other way)
        if self.kind == "tick":
            return pd.date_range(start, periods=periods, freq=self.offset)
        wall = start.tz_localize(None)
        return self._localised(pd.date_range(wall, periods=periods, freq=self.offset), start)

    def after(self, index: pd.Index, horizon: int) -> pd.Index:
        """Return the steps that follow the last one of an index.

        Args:
            index: A grid with at least one step.
            horizon: The number of steps wanted.

        Returns:
            An index of `horizon` steps.
        """
        return self.range(index[-1], horizon + 1)[1:]

    def before(self, index: pd.Index, steps: int) -> pd.Index:
        """Return the steps that precede the first one of an index.

        Args:
            index: A grid with at least one step.
            steps: The number of steps wanted.

        Returns:
            An index of `steps` steps.
        """
        start = index[0]
        if isinstance(self.name, int):
            return self.range(int(start) - self.name * steps, steps)
        if self.kind == "tick":
            return pd.date_range(end=start, periods=steps + 1, freq=self.offset)[:-1]
        wall = pd.date_range(end=start.tz_localize(None), periods=steps + 1, freq=self.offset)[:-1]
        return self._localised(wall, start)

    def positions(self, index: pd.Index) -> np.ndarray:
        """Count steps from the first timestamp of an index.

        Args:
            index: Increasing timestamps (or whole numbers) of one series.

        Returns:
            int64 (len(index),): the step number of each, -1 where a timestamp lies on no step.
        """
        if self.kind == "calendar":
            first, last = index[0], index[-1]
            grid = pd.date_range(first.tz_localize(None), last.tz_localize(None), freq=self.offset)
            if len(grid) == 0 or grid[0] != first.tz_localize(None):
                return np.full(len(index), -1, dtype=np.int64)
            return np.asarray(self._localised(grid, first).get_indexer(index), dtype=np.int64)
        if isinstance(self.name, int):
            values, step = np.asarray(index, dtype=np.int64), self.name
        else:
            values, width = _instants(pd.DatetimeIndex(index))
            step = max((self.nanoseconds or 1) // width, 1)
        steps, rest = np.divmod(values - values[0], step)
        return np.where(rest == 0, steps, -1)

    def _localised(self, wall: pd.DatetimeIndex, like: pd.Timestamp) -> pd.DatetimeIndex:
        """Put naive local times into the zone and unit of a timestamp."""
        if like.tz is not None:
            wall = wall.tz_localize(like.tz, nonexistent="shift_forward", ambiguous=np.ones(len(wall), dtype=bool))
        return wall.as_unit(like.unit)


def default_season(freq: str | int) -> int | None:
    """Return the usual season of a frequency in steps.

    Args:
        freq: A pandas offset alias or a whole number.

    Returns:
        24 for "h", 96 for "15min", 7 for "D", 5 for "B", 52 for "W-SUN", 12 for "MS", 4 for "QS"; None where there is
        no usual one ("YS", whole numbers).
    """
    return Frequency.parse(freq).season


def infer_frequency(index: pd.Index) -> Frequency | None:
    """Guess the frequency of increasing timestamps, also where some are missing.

    Args:
        index: Timestamps or whole numbers of one series, increasing, without duplicates.

    Returns:
        The frequency that most steps follow, or None where no answer stands out.
    """
    if len(index) < 2:
        return None
    if not isinstance(index, pd.DatetimeIndex):
        common = _most_common(np.diff(np.asarray(index, dtype=np.int64)))
        return None if common is None else Frequency(common)
    if len(index) >= 3:
        guess = pd.infer_freq(index)
        if guess is not None:
            return Frequency.parse(guess)
    wall = index.tz_localize(None)
    values, width = _instants(index)
    common = _most_common(np.diff(values))
    if common is None:
        return None
    if common * width < 20 * 3600 * _SECOND:
        offset = to_offset(pd.Timedelta(common * width, "ns"))
        return None if offset is None else Frequency(offset.freqstr)
    days = _most_common(np.diff(wall.normalize().as_unit("s").asi8) // 86_400)
    return None if days is None else _calendar_frequency(wall, days)


def _instants(index: pd.DatetimeIndex) -> tuple[np.ndarray, int]:
    """Return timestamps as int64, and the nanoseconds of its unit: microseconds outside 1677 to 2262."""
    try:
        return index.as_unit("ns").asi8, 1
    except pd.errors.OutOfBoundsDatetime:
        return index.as_unit("us").asi8, 1000


def _most_common(steps: np.ndarray) -> int | None:
    """Return the most frequent positive step."""
    values, counts = np.unique(steps[steps > 0], return_counts=True)
    return int(values[counts.argmax()]) if len(values) else None


def _calendar_frequency(wall: pd.DatetimeIndex, days: int) -> Frequency | None:
    """Name the frequency of local times whose usual distance is a number of days."""
    if days == 1:
        weekdays_only = bool((wall.dayofweek < 5).all()) and (wall[-1] - wall[0]).days >= 7
        return Frequency("B" if weekdays_only else "D")
    if 28 <= days <= 31 or 89 <= days <= 92 or 365 <= days <= 366:
        unit = "M" if days <= 31 else "Q" if days <= 92 else "Y"
        if bool(wall.is_month_start.all()):
            edge = "S"
        elif bool(wall.is_month_end.all()):
            edge = "E"
        else:
            return None
        anchor = f"-{wall[0].strftime('%b').upper()}" if unit != "M" else ""
        return Frequency.parse(f"{unit}{edge}{anchor}")
    if days == 7:
        return Frequency(f"W-{wall[0].strftime('%a').upper()}")
    return Frequency(f"{days}D")
