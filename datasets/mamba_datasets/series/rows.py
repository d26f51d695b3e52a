"""The rows of each series: grouped, in time order, without duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.report import Collector
from mamba_datasets.series.table import Table
from mamba_datasets.series.timestamps import localise

_SEVERAL = "if they are several series, name each row's in a column 'unique_id', or in another that id_col names"


@dataclass(frozen=True)
class SeriesRows:
    """The rows of one series in time order.

    Args:
        key: The id as it stands in the data.
        rows: int64 (n,) row numbers in the table.
        index: The n timestamps or whole numbers.
        timed: Whether the timestamps can be relied on; False only where findings are kept.
    """

    key: str | int
    rows: np.ndarray
    index: pd.Index
    timed: bool = True

    def place(self, table: Table, number: int) -> str:
        """Name the place of one of the series' rows."""
        if not self.timed:
            return f"series {str(self.key)!r} ({table.place(self.rows[number])})"
        return f"series {str(self.key)!r}, {self.index[number]} ({table.place(self.rows[number])})"


def group_rows(
    table: Table,
    codes: np.ndarray,
    keys: Sequence[str | int],
    times: pd.Index | None,
    sink: Collector,
    *,
    sort: bool,
    tz: Any,
) -> list[SeriesRows]:
    """Gather the rows of each series and check their order.

    Args:
        table: The table.
        codes: The series of each row.
        keys: The ids.
        times: The timestamp of each row, NaT where it could not be read; None where none could.
        sink: Takes rows out of order, duplicates, and local times that a time zone does not have.
        sort: Whether to sort rows that are out of order.
        tz: The zone to read naive local times in.

    Returns:
        One entry a series. Where findings are kept, rows are sorted and later duplicates left out.
    """
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(keys) + 1))
    naive = isinstance(times, pd.DatetimeIndex) and times.tz is None
    grouped = []
    resorted = 0
    for number, key in enumerate(keys):
        rows = order[edges[number] : edges[number + 1]]
        if times is None or times[rows].hasnans:
            grouped.append(SeriesRows(key, rows, pd.RangeIndex(len(rows)), timed=False))
            continue
        index = times[rows]
        if naive and tz is not None:
            assert isinstance(index, pd.DatetimeIndex)  # noqa: S101  (naive says so)
            if sort:
                by_time = np.argsort(index.asi8, kind="stable")
                rows, index = rows[by_time], index[by_time]
            zoned, reason = localise(index, tz)
            if zoned is None:
                found = f"local times of {tz} were expected ({reason})"
                sink.add(f"series {str(key)!r}", found, "correct the times, or write them in UTC or with their offset")
                grouped.append(SeriesRows(key, rows, pd.RangeIndex(len(rows)), timed=False))
                continue
            index = zoned
        one = SeriesRows(key, rows, index)
        if not index.is_monotonic_increasing:
            resorted += 1
            if not sort:
                _report_unsorted(table, one, sink)
            by_time = index.argsort(kind="stable")
            one = SeriesRows(key, rows[by_time], index[by_time])
        grouped.append(_without_duplicates(table, one, sink))
    if resorted and sort:
        sink.note(f"the rows of {resorted} series were sorted by time")
    return grouped


def _report_unsorted(table: Table, one: SeriesRows, sink: Collector) -> None:
    back = int(np.flatnonzero(one.index[1:] < one.index[:-1])[0]) + 1
    found = f"rows in time order were expected, found {one.index[back]} after {one.index[back - 1]}"
    remedy = "sort the rows by time, as frame.sort_values and read_series(sort=True) do"
    if table.id_col is None:
        remedy += f"; {_SEVERAL}"
    sink.add(one.place(table, back), found, remedy)


def _without_duplicates(table: Table, one: SeriesRows, sink: Collector) -> SeriesRows:
    duplicated = np.asarray(one.index.duplicated())
    if not duplicated.any():
        return one
    again = int(np.flatnonzero(duplicated)[0])
    count = int(duplicated.sum())
    first = table.place(one.rows[again - 1])
    found = f"one row a timestamp was expected, found the timestamp of {first} again ({count} repeated rows)"
    if table.id_col is None:
        remedy = f"keep one row a timestamp; {_SEVERAL}"
    else:
        remedy = "keep one row a timestamp and series, or aggregate them"
    if all(is_clock_change(stamp) for stamp in one.index[duplicated]):
        remedy += "; if these are local times where the clock is set back, pass tz='Europe/Berlin' or the like"
    sink.add(one.place(table, again), found, remedy)
    return SeriesRows(one.key, one.rows[~duplicated], one.index[~duplicated])


def is_clock_change(stamp: object) -> bool:
    """Whether a naive timestamp falls where daylight saving begins or ends: the small hours of a Sunday there."""
    if not isinstance(stamp, pd.Timestamp) or stamp.tz is not None:
        return False
    return stamp.dayofweek == 6 and stamp.hour < 4 and stamp.month in (3, 4, 9, 10, 11)
