"""Multivariate series with holes in: several columns a series on one grid, NaN where nothing was observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.series.assemble import grid_steps
from mamba_datasets.series.frequency import Frequency
from mamba_datasets.series.read import check_zone, column_names, inferred_frequency
from mamba_datasets.series.rows import group_rows
from mamba_datasets.series.table import Table, load_table
from mamba_datasets.series.timestamps import parse_timestamps
from mamba_datasets.series.values import numbers, series_ids


@dataclass(frozen=True, eq=False)
class Variates:
    """Series of one frequency with the same columns.

    Args:
        values: For each series float64 (T, C) on its grid; NaN where a value is missing.
        indexes: The timestamps or whole numbers of each series' steps, without gaps.
        keys: The ids as they stand in the data.
        names: The C columns.
        freq: The frequency: a pandas offset alias or a whole number.
        id_col: The column of series ids.
        time_col: The column of timestamps.
        notes: What the reader did and says openly.
        source: The file, or "DataFrame".
    """

    values: tuple[np.ndarray, ...]
    indexes: tuple[pd.Index, ...]
    keys: tuple[str | int, ...]
    names: tuple[str, ...]
    freq: str | int
    id_col: str = "unique_id"
    time_col: str = "ds"
    notes: tuple[str, ...] = ()
    source: str = "DataFrame"

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (series,): the steps of each series."""
        return np.array([len(index) for index in self.indexes], dtype=np.int64)

    def frame(self, values: Sequence[np.ndarray]) -> pd.DataFrame:
        """Return values (T, C) of each series in the long format: id, timestamp, columns; a row a step."""
        times = self.indexes[0].append(list(self.indexes[1:]))
        found = pd.DataFrame({self.id_col: pd.Index(list(self.keys)).repeat(self.lengths), self.time_col: times})
        return found.assign(**dict(zip(self.names, np.concatenate(values).T, strict=True)))


def read_variates(
    source: Path | str | pd.DataFrame | Table,
    *,
    columns: Sequence[str] | str | None = None,
    freq: str | int | None = None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    tz: str | None = None,
) -> Variates:
    """Read several columns of numbers a series; missing rows and missing values become NaN, nothing is filled in.

    Args:
        source: As in `read_series`.
        columns: The columns; None takes all but those of ids and timestamps.
        freq: A pandas offset alias, or a whole number for whole-number steps; None infers it and says so in `notes`.
        id_col: The column of series ids; where there is none of the default name, the source is a single series.
        time_col: The column of timestamps or whole numbers.
        tz: The time zone that local times are read in.

    Raises:
        DataError: The data cannot be used; the error names file, place, what was expected and the remedy.
    """
    label = source.label if isinstance(source, Table) else "DataFrame" if isinstance(source, pd.DataFrame) else source
    sink = Collector(str(label))
    check_zone(sink.path, tz)
    if columns is not None:
        columns = column_names(columns)
    wanted = None if freq is None else Frequency.parse(freq, sink.path)
    required = None if columns is None else [time_col, *columns]
    table = load_table(source, id_col=id_col, required=required)
    if time_col not in table.frame.columns:
        found = f"a column {time_col!r} of timestamps was expected"
        raise DataError(table.label, "columns", found, nearest(time_col, table.frame.columns))
    names = tuple(columns or (name for name in table.frame.columns if name not in (table.id_col, time_col)))
    if not names or len(set(names)) < len(names) or set(names) & {id_col, time_col}:
        found = f"different columns of numbers were expected beside id and timestamp, found {list(names)}"
        raise DataError(table.label, "columns", found, "name each column to read once")
    codes, keys = series_ids(table, sink)
    values_NC = np.stack([numbers(table, name, sink, "variate") for name in names], axis=1)
    infinite = np.argwhere(np.isinf(values_NC))
    if len(infinite):
        row, column = infinite[0]
        where = f"{table.place(row)}, column {names[column]!r}"
        sink.add(where, "a finite number was expected, found an infinite one", "correct it or leave it empty")
    whole = None if wanted is None else wanted.kind == "integer"
    times = parse_timestamps(table, time_col, sink, whole_numbers=whole, tz=tz)
    rows = group_rows(table, codes, keys, times, sink, sort=False, tz=tz)
    frequency = wanted or inferred_frequency(rows, sink)
    assert frequency is not None  # noqa: S101  (a collector that keeps nothing has raised)
    values: list[np.ndarray] = []
    grids: dict[object, pd.Index] = {}
    for one in rows:
        steps = grid_steps(table, one, frequency, sink, "mask", wanted is None)
        assert steps is not None  # noqa: S101  (as above)
        full_TC = np.full((int(steps[-1]) + 1, len(names)), np.nan)
        full_TC[steps] = values_NC[one.rows]
        values.append(full_TC)
        start = one.index[0]
        # Series with the same first step share a grid.
        if start not in grids or len(grids[start]) < len(full_TC):
            grids[start] = frequency.range(start, len(full_TC))
    return Variates(
        values=tuple(values),
        indexes=tuple(grids[one.index[0]][: len(part)] for one, part in zip(rows, values, strict=True)),
        keys=tuple(keys),
        names=names,
        freq=frequency.name,
        id_col=id_col,
        time_col=time_col,
        notes=tuple(sink.notes),
        source=table.label,
    )
