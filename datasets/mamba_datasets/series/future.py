"""The steps to come: which they are, and the covariates that are known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.series.calendar import calendar_columns
from mamba_datasets.series.rows import SeriesRows, group_rows
from mamba_datasets.series.table import Table, load_table
from mamba_datasets.series.timestamps import parse_timestamps
from mamba_datasets.series.values import covariates, series_ids

if TYPE_CHECKING:
    from mamba_datasets.series.data import SeriesSet

_LABEL = "futr_df"


def future_indexes(series_set: SeriesSet, horizon: int) -> list[pd.Index]:
    """Return the steps to come of each series.

    Args:
        series_set: The set; each series has at least one step.
        horizon: Their number, at least 1.

    Returns:
        One index a series.

    Raises:
        DataError: The horizon is below 1.
    """
    if horizon < 1:
        raise DataError(_LABEL, "horizon", f"at least 1 step was expected, found {horizon}", "pass horizon=1 or more")
    made: dict[object, pd.Index] = {}
    for name, index in zip(series_set.ids, series_set.indexes, strict=True):
        if len(index) == 0:
            found = "at least one step to continue from was expected, found none"
            raise DataError(series_set.source, f"series {name!r}", found, "leave the series out with select")
        if index[-1] not in made:
            made[index[-1]] = series_set.frequency.after(index, horizon)
    return [made[index[-1]] for index in series_set.indexes]


def future_frame(series_set: SeriesSet, horizon: int) -> pd.DataFrame:
    """Return ids and timestamps of the steps to come; see `SeriesSet.future_frame`."""
    id_col, time_col = series_set.columns["id_col"], series_set.columns["time_col"]
    indexes = future_indexes(series_set, horizon)
    times = indexes[0].append(indexes[1:])
    return pd.DataFrame({id_col: repeated_keys(series_set.keys, [horizon] * len(series_set)), time_col: times})


def repeated_keys(keys: Sequence[str | int], counts: Sequence[int]) -> pd.Index:
    """Return the ids of a long frame, each as often as its series has rows."""
    return pd.Index(list(keys)).repeat(counts)


def extend_future(series_set: SeriesSet, futr_df: pd.DataFrame | Path | str | Table | None, horizon: int) -> SeriesSet:
    """Append the steps to come; see `SeriesSet.extend_future`."""
    indexes = future_indexes(series_set, horizon)
    known = _known_future(series_set, futr_df, indexes)
    if series_set.calendar is not None:
        _, calendar = calendar_columns(indexes, series_set.freq, series_set.calendar)
        known = [np.concatenate(pair, axis=1) for pair in zip(known, calendar, strict=True)]
    split = len(series_set.past_names)
    y, observed, x = [], [], []
    for one, ahead in zip(series_set.series, known, strict=True):
        # Nothing reads the past covariates and targets of these steps; the last values keep them finite.
        held = np.repeat(np.concatenate([one.past, one.future], axis=1)[-1:], horizon, axis=0)
        held[:, split:] = ahead
        y.append(np.concatenate([one.y, np.repeat(one.y[-1:], horizon)]))
        observed.append(np.concatenate([one.observed, np.zeros(horizon, dtype=bool)]))
        x.append(np.concatenate([one.past, one.future], axis=1))
        x.append(held)
    lengths = series_set.lengths + horizon
    ends = np.cumsum(lengths)
    return dataclasses.replace(
        series_set,
        y=np.concatenate(y),
        observed=np.concatenate(observed),
        x=np.concatenate(x),
        bounds=np.column_stack([ends - lengths, ends]),
        indexes=tuple(series_set.frequency.range(index[0], len(index) + horizon) for index in series_set.indexes),
    )


def _known_future(
    series_set: SeriesSet, futr_df: pd.DataFrame | Path | str | Table | None, indexes: list[pd.Index]
) -> list[np.ndarray]:
    """Return the known-future covariates of the steps to come, without the calendar: (H, columns) a series."""
    columns = series_set.columns["future"]
    if futr_df is None:
        if columns:
            found = f"the known-future covariates {list(columns)} were expected, found no frame"
            raise DataError(_LABEL, "argument", found, "pass futr_df with the rows of future_frame")
        return [np.empty((len(index), 0), dtype=np.float32) for index in indexes]
    id_col, time_col = series_set.columns["id_col"], series_set.columns["time_col"]
    # A set of one series may have been read without an id column; then its future may come without one too.
    default = id_col if len(series_set) == 1 else ""
    table = load_table(futr_df, id_col=id_col, required=[time_col, *columns], default_id_col=default)
    label = _LABEL if isinstance(futr_df, pd.DataFrame) else table.label
    table = dataclasses.replace(table, label=label, stem=series_set.ids[0])
    sink = Collector(label)
    codes, keys = series_ids(table, sink)
    for key in keys:
        if str(key) not in series_set.positions:
            found = f"a series of the data was expected, found {key!r}"
            raise DataError(label, "id", found, nearest(key, series_set.ids))
    zone = indexes[0].tz if isinstance(indexes[0], pd.DatetimeIndex) else None
    whole = series_set.frequency.kind == "integer"
    times = parse_timestamps(table, time_col, sink, whole_numbers=whole, tz=zone)
    if zone is None and isinstance(times, pd.DatetimeIndex) and times.tz is not None:
        found = "timestamps without a time zone were expected, as in the data"
        raise DataError(label, f"column {time_col!r}", found, "leave the zone out")
    block = covariates(table, columns, sink, series_set.categories)
    by_id = {str(one.key): one for one in group_rows(table, codes, keys, times, sink, sort=True, tz=zone)}
    parts = []
    for name, index in zip(series_set.ids, indexes, strict=True):
        rows = _exact_rows(label, by_id.get(name), name, index)
        values = block.values[rows]
        empty = np.argwhere(np.isnan(values))
        if len(empty):
            step, column = (int(value) for value in empty[0])
            found = "a value was expected, found none"
            where = f"series {name!r}, {index[step]}, column {block.source[column]!r}"
            raise DataError(label, where, found, "fill it in: a covariate known ahead has a value in every row")
        parts.append(values.astype(np.float32))
    return parts


def _exact_rows(label: str, one: SeriesRows | None, name: str, index: pd.Index) -> np.ndarray:
    """Return the rows of a series that are its steps to come, or name one that is missing or too many."""
    where = f"series {name!r}"
    if one is None:
        found = f"rows for {index[0]} to {index[-1]} were expected, found none"
        raise DataError(label, where, found, "pass the rows of future_frame")
    found_at = one.index.get_indexer(index)
    absent = np.flatnonzero(found_at < 0)
    if len(absent):
        found = f"a row for {index[absent[0]]} was expected, found none ({len(absent)} of {len(index)} are missing)"
        raise DataError(label, where, found, "pass the rows of future_frame")
    extra = np.flatnonzero(index.get_indexer(one.index) < 0)
    if len(extra):
        found = f"only rows for {index[0]} to {index[-1]} were expected, found {one.index[extra[0]]}"
        raise DataError(label, where, found, "leave out rows that are not in future_frame")
    return one.rows[found_at]
