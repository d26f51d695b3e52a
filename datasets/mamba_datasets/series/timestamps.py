"""Timestamps in: one column becomes instants of one time zone, or whole numbers."""

from __future__ import annotations

import datetime
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.report import Collector
from mamba_datasets.series.table import Table

_OFFSET = re.compile(r"(Z|[+-]\d{2}(?::?\d{2})?)$")
_DST_ERRORS = ("AmbiguousTimeError", "NonExistentTimeError")
_ISO = "ISO8601"  # as pandas names it
# Of so small a part of a column something else is wrong than how dates are written.
_FEW = 0.1
_WRITE_ISO = "write ISO 8601 (2020-01-31 13:00)"


def parse_timestamps(
    table: Table,
    time_col: str,
    sink: Collector,
    *,
    whole_numbers: bool | None,
    time_format: str | None = _ISO,
    tz: Any = None,
) -> pd.Index | None:
    """Read a column of timestamps.

    Args:
        table: The table.
        time_col: Its column of timestamps.
        sink: Takes what cannot be read.
        whole_numbers: Whether the steps are whole numbers; None where only the values can tell.
        time_format: The format of text timestamps as in `datetime.strptime`; ISO 8601 if None, and then that there
            are others is said.
        tz: The zone that timestamps with a zone are converted into; those without are left to the caller.

    Returns:
        A DatetimeIndex or an index of int64, one entry a row, NaT where it could not be read; None where findings leave
        nothing to go on with.
    """
    column = table.frame[time_col]
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        where = f"{table.place(missing[0])}, column {time_col!r}"
        sink.add(where, f"a timestamp was expected, found none{_more(missing)}", "fill it in or remove the row")
        return None
    index = _convert(table, column, sink, whole_numbers, time_format, tz)
    if isinstance(index, pd.DatetimeIndex) and whole_numbers:
        sink.add(f"column {time_col!r}", "whole numbers were expected, found timestamps", "pass freq='h' or the like")
        return None
    if index is not None and not isinstance(index, pd.DatetimeIndex) and whole_numbers is False:
        expected = f"timestamps were expected, found the whole number {index[0]}"
        remedy = "pass a whole number as freq, or make timestamps with pd.to_datetime(column, unit='s')"
        sink.add(f"column {time_col!r}", expected, remedy)
        return None
    if isinstance(index, pd.DatetimeIndex) and index.tz is not None and tz is not None:
        return index.tz_convert(tz)
    return index


def _convert(
    table: Table,
    column: pd.Series,
    sink: Collector,
    whole_numbers: bool | None,
    time_format: str | None,
    tz: Any,
) -> pd.Index | None:
    if isinstance(column.dtype, pd.PeriodDtype):
        remedy = f"convert it first: frame[{column.name!r}].dt.to_timestamp()"
        sink.add(f"column {column.name!r}", "timestamps were expected, found periods", remedy)
        return None
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return pd.DatetimeIndex(column, name=None)
    if isinstance(column.dtype, pd.ArrowDtype) and "timestamp" in str(column.dtype):
        return pd.DatetimeIndex(
            column.dt.to_pydatetime() if column.dt.tz else column.astype("datetime64[us]"), name=None
        )
    if pd.api.types.is_integer_dtype(column.dtype):
        return pd.Index(column.to_numpy(dtype=np.int64))
    if not (pd.api.types.is_string_dtype(column.dtype) or column.dtype == object):
        expected = f"timestamps or whole numbers were expected, found {column.dtype}"
        sink.add(f"column {column.name!r}", expected, "convert the column first")
        return None
    if table.is_text and whole_numbers is not False and bool(column.str.fullmatch(r"-?\d{1,18}").all()):
        return pd.Index(column.astype(np.int64).to_numpy())
    return _parse_text(table, column, sink, time_format, tz)


def _parse_text(
    table: Table, column: pd.Series, sink: Collector, time_format: str | None, tz: Any
) -> pd.DatetimeIndex | None:
    """Read text or Python objects, and find the row that is to blame where that fails."""
    pattern = time_format or _ISO
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parsed = pd.DatetimeIndex(pd.to_datetime(column, format=pattern), name=None)
        if parsed.tz is None:
            return parsed
    except (ValueError, TypeError, OverflowError, Warning):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = pd.DatetimeIndex(pd.to_datetime(column, format=pattern, utc=True, errors="coerce"), name=None)
    # pandas 2 gives a time without a zone among others the first one's zone: each is looked at.
    bad = np.flatnonzero(np.asarray(parsed.isna()))
    if len(bad):
        where = f"{table.place(bad[0])}, column {column.name!r}"
        expected = f"a timestamp was expected, found {str(column.iloc[bad[0]])!r}{_more(bad)}"
        if time_format is None:
            remedy = f"{_WRITE_ISO}, or pass read_series time_format='%d/%m/%Y' or the like"
        else:
            remedy = _WRITE_ISO if time_format == _ISO else f"it must fit time_format={time_format!r}"
        if len(bad) < _FEW * len(column):
            remedy = f"remove the row, or {_WRITE_ISO}"
        sink.add(where, expected, remedy)
    good = np.flatnonzero(np.asarray(parsed.notna()))
    offsets = [_offset(value) for value in column.iloc[good]]
    other = next((number for number, offset in enumerate(offsets) if offset != offsets[0]), None)
    if other is None:
        zone_free = not offsets or offsets[0] is None
        return parsed.tz_localize(None) if zone_free else parsed
    if tz is not None and None not in offsets:
        return parsed
    first, second = (str(offset) if offset is not None else "none" for offset in (offsets[0], offsets[other]))
    where = f"{table.place(int(good[other]))}, column {column.name!r}"
    expected = f"one time zone was expected, found {second} here and {first} before"
    remedy = "write all timestamps in one zone" if None in offsets else "pass tz='UTC' or the zone you want them in"
    sink.add(where, expected, remedy)
    return None


def _offset(value: object) -> str | None:
    """Name the zone of one timestamp; None if it has none."""
    if isinstance(value, datetime.datetime):
        return None if value.tzinfo is None else str(value.tzinfo)
    found = _OFFSET.search(str(value)) if ":" in str(value) else None
    if found is None:
        return None
    digits = found[1].replace(":", "").replace("Z", "+00")
    return f"{digits[:3]}:{digits[3:] or '00'}"


def localise(times: pd.DatetimeIndex, tz: Any) -> tuple[pd.DatetimeIndex | None, str]:
    """Read naive local times of one series as times of a zone.

    Args:
        times: Naive timestamps in the order of the file; an hour that daylight saving repeats stands there twice.
        tz: The zone.

    Returns:
        The times of that zone and "", or None and what is wrong with them.
    """
    try:
        return times.tz_localize(tz, ambiguous="infer", nonexistent="raise"), ""
    except Exception as error:
        # pandas 2 raises pytz's two errors, which share no base class with those of pandas 3.
        if not isinstance(error, ValueError) and type(error).__name__ not in _DST_ERRORS:
            raise
        return None, str(error).split(",")[0].strip().rstrip(".")


def _more(rows: np.ndarray) -> str:
    return f" ({len(rows)} such rows)" if len(rows) > 1 else ""
