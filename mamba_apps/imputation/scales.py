"""What an imputer takes from the data before it learns: scales, the calendar, how much it reads at once.

Dimensions in names: S series, T steps of a series, C variates, K known columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series import Frequency, Variates
from mamba_datasets.series.calendar import calendar_columns

_DAYS_A_WEEK = 7
_WITHOUT_SEASON = 64


@dataclass(frozen=True, eq=False)
class Scales:
    """Mean and population standard deviation of each series' variates; a constant has scale 1.

    Args:
        keys: The ids of the series.
        mean_SC: float64 (S, C).
        std_SC: float64 (S, C), positive.
    """

    keys: tuple[str | int, ...]
    mean_SC: np.ndarray
    std_SC: np.ndarray

    @classmethod
    def of(cls, data: Variates, held_S: np.ndarray) -> Scales:
        """Take them from series without the steps that are held back at their ends.

        Raises:
            DataError: A series has no value of a column there.
        """
        parts = [values_TC[: len(values_TC) - held] for values_TC, held in zip(data.values, held_S, strict=True)]
        for key, part_TC in zip(data.keys, parts, strict=True):
            empty = np.flatnonzero(np.isnan(part_TC).all(axis=0))
            if len(empty):
                found = f"at least one value of {data.names[empty[0]]!r} was expected to learn from, found none"
                where = f"series {str(key)!r}"
                raise DataError(data.source, where, found, "leave the series or the column out")
        mean_SC = np.stack([np.nanmean(part_TC, axis=0) for part_TC in parts])
        std_SC = np.stack([np.nanstd(part_TC, axis=0) for part_TC in parts])
        return cls(data.keys, mean_SC, np.where(std_SC > 1e-7 * np.abs(mean_SC), std_SC, 1.0))

    def select(self, data: Variates) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and standard deviations of some series, in their order.

        Raises:
            DataError: A series was not in the fit's data.
        """
        places = {str(key): number for number, key in enumerate(self.keys)}
        for key in data.keys:
            if str(key) not in places:
                found = f"a series of the fit was expected, found {key!r}"
                raise DataError(data.source, "id", found, nearest(key, places))
        rows = [places[str(key)] for key in data.keys]
        return self.mean_SC[rows], self.std_SC[rows]

    def scaled(self, data: Variates, values: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Return values (T, C) of each series, scaled, float32; None for those of the data."""
        mean_SC, std_SC = self.select(data)
        parts = zip(data.values if values is None else values, mean_SC, std_SC, strict=True)
        return [((values_TC - mean_C) / std_C).astype(np.float32) for values_TC, mean_C, std_C in parts]


def known_columns(data: Variates, calendar: Mapping[str, Any] | None) -> tuple[list[np.ndarray], int]:
    """Return what the calendar says of each series' steps, float32 (T, K), and how many columns that is."""
    if calendar is None:
        return [np.empty((length, 0), dtype=np.float32) for length in data.lengths], 0
    features, parts = calendar_columns(data.indexes, data.freq, calendar)
    return parts, len(features)


def long_season(freq: str | int) -> int | None:
    """Return the longest usual season in steps: a week for sub-daily data, else the frequency's own."""
    frequency = Frequency.parse(freq)
    season = frequency.season
    return season * _DAYS_A_WEEK if season is not None and frequency.kind == "tick" else season


def default_window(data: Variates) -> int:
    """Return the steps read at once: a long season, no more than a quarter of the median series, at least 2."""
    return max(2, min(long_season(data.freq) or _WITHOUT_SEASON, int(np.median(data.lengths)) // 4))
