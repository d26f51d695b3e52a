"""Dates as people write them: found in a column of text, and said which way they were read."""

from __future__ import annotations

import datetime
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

_DAYS = ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%Y{0}%m{0}%d", "%d{0}%m{0}%y", "%m{0}%d{0}%y")
_NAMED = (
    "%d %b %Y",
    "%d %B %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%b %Y",
    "%B %Y",
    "%Y %b",
    "%Y %B",
    "%YM%m",
    "%b-%Y",
    "%b-%y",
    "%b %y",
    "%m/%Y",
    "%m.%Y",
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_FORMATS = (*(day.format(mark) for day in _DAYS for mark in "./-"), *_NAMED)
_QUARTER = re.compile(r"\s*(?:(\d{4})\s*[-/ ]?\s*Q([1-4])|Q([1-4])\s*[-/ ]?\s*(\d{4}))\s*", re.IGNORECASE)
_WEEK = re.compile(r"\s*(\d{4})\s*[-/ ]?\s*W(\d{1,2})\s*", re.IGNORECASE)
# Enough of a column must be dates for the rest, such as a row of totals, to be called wrong dates.
_MOST = 0.9
_READ_AS = {"%d": "day", "%m": "month", "%b": "month", "%B": "month", "%Y": "year", "%y": "year"}


@dataclass(frozen=True)
class Dates:
    """A column of dates.

    Args:
        values: The timestamps, NaT where there is none; where some text is none, all as text, the others in ISO 8601.
        how: How they were read, in words; empty for ISO 8601 and dates that are no text.
        unsure: Another way in which they could be read as well; empty if there is none.
    """

    values: pd.Series
    how: str = ""
    unsure: str = ""


def as_dates(column: pd.Series) -> Dates | None:
    """Read a column as dates, in the one way that fits all its values, or else most of them.

    Where day and month could be either, the way that gives the more regular steps is taken, and the day first between
    points.

    Args:
        column: Text, timestamps, or numbers such as 20240131.

    Returns:
        The dates, or None where the column holds something else.
    """
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return Dates(column)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_float_dtype(column.dtype):
        return None
    text = column.dropna().astype(str).str.strip()
    if not len(text):
        return None
    if text.iloc[0].isdigit() and text.str.fullmatch(r"\d+").all():
        whole = pd.to_numeric(text)
        if not (text.str.len().eq(8).all() and whole.between(1800_01_01, 2200_12_31).all()):
            return None
        found = _parsed(text, "%Y%m%d")
        return None if found is None else Dates(found.reindex(column.index), "year month day without marks")
    quarters = text.map(_QUARTER.fullmatch) if _QUARTER.fullmatch(text.iloc[0]) else None
    if quarters is not None and quarters.notna().all():
        starts = quarters.map(lambda m: f"{m[1] or m[4]}-{3 * int(m[2] or m[3]) - 2:02d}-01")
        return Dates(pd.to_datetime(starts).reindex(column.index), "quarters")
    weeks = text.map(_WEEK.fullmatch) if _WEEK.fullmatch(text.iloc[0]) else None
    if weeks is not None and weeks.notna().all():
        mondays = _parsed(weeks.map(lambda m: f"{m[1]}-{int(m[2]):02d}-1"), "%G-%V-%u")
        return None if mondays is None else Dates(mondays.reindex(column.index), "weeks, from their Mondays")
    iso = _parsed(text, "ISO8601")
    if iso is not None:
        return Dates(iso.reindex(column.index))
    return _by_format(column, text)


def _by_format(column: pd.Series, text: pd.Series) -> Dates | None:
    first = text.iloc[0]
    candidates = [day + clock for day in _FORMATS for clock in _CLOCKS if _fits(first, day + clock)]
    found = {pattern: values for pattern in candidates if (values := _parsed(text, pattern)) is not None}
    if not found:
        return _most(column, text, candidates)
    regular = {pattern: _regularity(values) for pattern, values in found.items()}
    ranked = sorted(found, key=lambda pattern: (-regular[pattern], candidates.index(pattern)))
    chosen = ranked[0]
    others = [p for p in ranked[1:] if "." not in chosen and np.isclose(regular[p], regular[chosen])]
    return Dates(found[chosen].reindex(column.index), _words(chosen), _words(others[0]) if others else "")


def _most(column: pd.Series, text: pd.Series, patterns: list[str]) -> Dates | None:
    """Read what can be read in the pattern that fits the most, and leave the rest for a reader to point at."""
    found = {pattern: pd.to_datetime(text, format=pattern, errors="coerce") for pattern in patterns}
    chosen = max(found, key=lambda pattern: found[pattern].notna().sum(), default=None)
    if chosen is None or found[chosen].notna().mean() < _MOST:
        return None
    dates = found[chosen].dropna()
    mixed = column.astype(object)
    mixed.loc[dates.index] = dates.dt.strftime("%Y-%m-%d %H:%M:%S")
    return Dates(mixed, _words(chosen))


def _fits(text: str, pattern: str) -> bool:
    try:  # a hundredth of pandas' time, which counts where there are thousands of columns
        return bool(datetime.datetime.strptime(text, pattern))
    except (ValueError, OverflowError):
        return False


def _parsed(text: pd.Series, pattern: str) -> pd.Series | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pd.to_datetime(text, format=pattern)
    except (ValueError, TypeError, OverflowError, Warning):
        return None


def _regularity(values: pd.Series) -> float:
    """Return the share of steps that are the most common one, days of months and years taken alike."""
    stamps = np.sort(values.unique().astype("datetime64[s]").astype(np.int64))
    if len(stamps) < 3:
        return 0.0
    steps = np.diff(stamps)
    # Months and years have lengths of their own.
    steps = np.where((steps >= 28 * 86_400) & (steps <= 31 * 86_400), 30 * 86_400, steps)
    return float(np.unique(steps, return_counts=True)[1].max() / len(steps))


def _words(pattern: str) -> str:
    return " ".join(dict.fromkeys(_READ_AS[part] for part in re.findall(r"%[dmbBYy]", pattern)))
