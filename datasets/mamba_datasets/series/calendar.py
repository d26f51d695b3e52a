"""Calendar features: what a timestamp alone tells about any future step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest
from mamba_datasets.series.frequency import Frequency

_HOUR = 3600 * 1_000_000_000
_CHUNK = 1_000_000


class CalendarFrame(NamedTuple):
    """Calendar features of an index.

    Args:
        names: One name a column.
        values: float32 (T, len(names)), each in [-1, 1].
    """

    names: tuple[str, ...]
    values: np.ndarray


def _seconds(local: pd.DatetimeIndex) -> np.ndarray:
    """Seconds since local midnight."""
    return np.asarray(local.hour * 3600 + local.minute * 60 + local.second, dtype=np.float64)


def _year_part(local: pd.DatetimeIndex) -> np.ndarray:
    length = np.where(local.is_leap_year, 366.0, 365.0)
    return (np.asarray(local.dayofyear, dtype=np.float64) - 1 + _seconds(local) / 86_400) / length


# Each cyclic feature is the part of its cycle that has passed, in [0, 1).
_CYCLES: dict[str, Callable[[pd.DatetimeIndex], np.ndarray]] = {
    "minute": lambda local: _seconds(local) % 3600 / 3600,
    "hour": lambda local: _seconds(local) / 86_400,
    "dayofweek": lambda local: (np.asarray(local.dayofweek) + _seconds(local) / 86_400) / 7,
    "dayofmonth": lambda local: (np.asarray(local.day) - 1) / np.asarray(local.days_in_month),
    "dayofyear": _year_part,
}
FEATURES = (*_CYCLES, "weekend")


def default_features(freq: str | int) -> tuple[str, ...]:
    """Return the calendar features that fit a frequency.

    Args:
        freq: A pandas offset alias or a whole number.

    Returns:
        Names out of `FEATURES`: hour, day of week, day of year and weekend for sub-daily data (minute too below a
        quarter of an hour), without hour for days, day of year alone for weeks to quarters, none for years and whole
        numbers.
    """
    frequency = Frequency.parse(freq)
    step = frequency.nanoseconds
    if step is None or step > 300 * 24 * _HOUR:
        return ()
    if frequency.kind == "tick" and step < 24 * _HOUR:
        return (*(("minute",) if step < _HOUR // 4 else ()), "hour", "dayofweek", "dayofyear", "weekend")
    if step >= 7 * 24 * _HOUR:
        return ("dayofyear",)
    return ("dayofweek", "dayofyear") if str(frequency.name).endswith("B") else ("dayofweek", "dayofyear", "weekend")


def calendar_frame(
    index: pd.Index,
    freq: str | int,
    *,
    features: Sequence[str] | None = None,
    holidays: str | None = None,
) -> CalendarFrame:
    """Compute calendar features of an index, in its local time.

    A cyclic feature gives two columns, the sine and cosine of the part of the cycle that has passed; "weekend" one of
    0 and 1; holidays three: the day itself, the day before one and the day after one.

    Args:
        index: Timestamps; whole numbers have no calendar and give no column.
        freq: Their frequency; it chooses the features where none are named.
        features: Names out of "minute", "hour", "dayofweek", "dayofmonth", "dayofyear", "weekend"; None takes those
            that fit the frequency.
        holidays: "US" adds the United States' federal holidays; frequencies of a day or finer only.

    Returns:
        Names and values.

    Raises:
        DataError: A feature or a country is unknown, or holidays are asked of a frequency coarser than a day.
    """
    chosen = default_features(freq) if features is None else tuple(features)
    for name in chosen:
        if name not in FEATURES:
            raise DataError("calendar", "features", f"there is no calendar feature {name!r}", nearest(name, FEATURES))
    if holidays not in (None, "US"):
        raise DataError("calendar", "holidays", f"holidays of {holidays!r} are not built in", _OWN_HOLIDAYS)
    if not isinstance(index, pd.DatetimeIndex):
        if features or holidays:
            found = "timestamps were expected, found whole numbers"
            raise DataError("calendar", "index", found, "leave features and holidays out")
        return CalendarFrame((), np.empty((len(index), 0), dtype=np.float32))
    if holidays is not None:
        step = Frequency.parse(freq).nanoseconds
        if step is None or step > 24 * _HOUR:
            found = f"holidays need steps of a day or less, found freq={freq!r}"
            raise DataError("calendar", "holidays", found, "leave holidays out")
    names = [column for name in chosen for column in ([name] if name == "weekend" else [f"{name}_sin", f"{name}_cos"])]
    names += ["holiday", "holiday_before", "holiday_after"] if holidays is not None else []
    values = np.empty((len(index), len(names)), dtype=np.float32)
    # Years of minutes in one piece would take many times the memory of the result.
    for first in range(0, len(index), _CHUNK):
        part = index[first : first + _CHUNK]
        for place, column in enumerate(_columns(part.tz_localize(None), chosen, holidays)):
            values[first : first + len(part), place] = column
    return CalendarFrame(tuple(names), values)


def _columns(local: pd.DatetimeIndex, chosen: Sequence[str], holidays: str | None) -> Iterator[np.ndarray]:
    for name in chosen:
        if name == "weekend":
            yield np.asarray(local.dayofweek >= 5, dtype=np.float64)
            continue
        angle = 2 * np.pi * _CYCLES[name](local)
        yield np.sin(angle)
        yield np.cos(angle)
    if holidays is not None:
        yield from _us_holidays(local)


_OWN_HOLIDAYS = "use holidays='US', or add your own 0/1 column as a known-future covariate"


def _us_holidays(local: pd.DatetimeIndex) -> list[np.ndarray]:
    """Flag the days that are a federal holiday as observed, the days before one and the days after one."""
    from pandas.tseries.holiday import USFederalHolidayCalendar

    if len(local) == 0:
        return [np.empty(0)] * 3
    day = pd.Timedelta(days=1)
    days = local.normalize()
    # Rules such as "the nearest workday" look a few days around: the margin keeps both edges right.
    free = USFederalHolidayCalendar().holidays(days.min() - 10 * day, days.max() + 10 * day)
    flags = (days.isin(free), (days + day).isin(free), (days - day).isin(free))
    return [np.asarray(flag, dtype=np.float64) for flag in flags]


def calendar_columns(
    indexes: Sequence[pd.Index], freq: str | int, calendar: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Compute calendar features of many indexes, each distinct timestamp once.

    Args:
        indexes: The timestamps of each series.
        freq: Their frequency.
        calendar: "features" and "holidays" as in `calendar_frame`.

    Returns:
        Names, and for each index float32 (its length, len(names)).
    """
    if not all(isinstance(index, pd.DatetimeIndex) for index in indexes):
        names, _ = calendar_frame(indexes[0], freq, **calendar)
        return names, [np.empty((len(index), 0), dtype=np.float32) for index in indexes]
    if len(indexes) == 1:
        names, values = calendar_frame(indexes[0], freq, **calendar)
        return names, [values]
    unique = indexes[0].append(list(indexes[1:])).unique().sort_values()
    names, values = calendar_frame(unique, freq, **calendar)
    return names, [values[unique.get_indexer(index)] for index in indexes]
