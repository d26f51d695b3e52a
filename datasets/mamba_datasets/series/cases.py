"""Series to be classified, out of files and folders as people have them: each whole, of any length, with a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.series.guess import read_dialect
from mamba_datasets.series.rows import group_rows
from mamba_datasets.series.table import CSV_SUFFIXES, PARQUET_SUFFIXES, Table, load_table
from mamba_datasets.series.timestamps import parse_timestamps
from mamba_datasets.series.ts_format import LabelledSeries, read_ts_cases
from mamba_datasets.series.values import numbers, series_ids

_TS = ".ts"
_ID, _TIME = "unique_id", "ds"


@dataclass(frozen=True, eq=False)
class Cases:
    """Series without classes.

    Args:
        names: What each is called: its file, with its id or number where the file holds several.
        series: float32 (T, C) each; T may differ.
        notes: What was guessed of the files, a phrase each.
    """

    names: tuple[str, ...]
    series: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()


def read_cases(path: str | Path, channels: int, variates: Sequence[str] = ()) -> Cases:
    """Read the series of a file, or of every file in a folder and below it.

    A CSV or Parquet file holds one series, a row a step, or with a column "unique_id" several; a column "ds" says when
    each step was, and its order is checked. Separators, decimal commas and dates are guessed. A `.ts` file holds a
    series a line; classes in it are not read.

    Args:
        path: The file or folder.
        channels: How many variates each must have (C).
        variates: Their columns in a CSV or Parquet file, others are left out; without names, every column but those
            of ids and timestamps is one.

    Raises:
        DataError: There is no such file, or one cannot be used; the error names file and place.
    """
    path = Path(path)
    suffixes = (_TS, *CSV_SUFFIXES, *PARQUET_SUFFIXES)
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.name.lower().endswith(suffixes) and one.is_file())
        if not files:
            found = f"files that end in {', '.join(suffixes)} were expected, found none"
            raise DataError(path, "folder", found, "name a folder that holds series")
    names: list[str] = []
    series: list[np.ndarray] = []
    notes: dict[str, None] = {}
    for file in files:
        read = _read_ts(file) if file.name.lower().endswith(_TS) else _read_table(file, variates, notes)
        for name, values_TC in read:
            if values_TC.shape[1] != channels:
                found = f"{channels} variates were expected, found {values_TC.shape[1]}"
                raise DataError(file, name, found, "give series like those that were learned from")
            names.append(name)
            series.append(values_TC)
    return Cases(tuple(names), tuple(series), tuple(notes))


def read_labelled(
    source: str | Path | pd.DataFrame, *, label_col: str = "label", variates: Sequence[str] | None = None
) -> LabelledSeries:
    """Read series with classes from a table: a row a step, with the columns "unique_id" and the class of its series.

    Args:
        source: A CSV or Parquet file, or a frame. A column "ds" says when each step was, and its order is checked. A
            file's separator, decimal commas and dates are guessed.
        label_col: The column of classes.
        variates: The columns of the variates; None for all the others.

    Raises:
        DataError: The table cannot be used, or the class varies within a series; the error names the place.
    """
    if isinstance(source, pd.DataFrame):
        table = load_table(source, id_col=_ID, required=None)
    else:
        table, _ = _read_file(Path(source), label_col)
    _check_columns(table, [_ID, label_col, *(variates or ())])
    label = table.frame[label_col]
    columns = variates or [name for name in table.frame.columns if name not in (_ID, _TIME, label_col)]
    empty = np.flatnonzero(label.isna())
    if len(empty):
        where = f"{table.place(int(empty[0]))}, column {label_col!r}"
        raise DataError(table.label, where, "a class was expected, found none", "fill it in or leave the series out")
    codes, names = pd.factorize(label.astype(str), sort=True)
    series, labels = [], []
    for name, rows, values_TC in _each(table, columns):
        others = np.flatnonzero(codes[rows] != codes[rows[0]])
        if len(others):
            found = f"one class was expected, found {names[codes[rows[0]]]!r} and {names[codes[rows[others[0]]]]!r}"
            raise DataError(table.label, f"series {name!r}", found, "give each series one class")
        series.append(values_TC)
        labels.append(codes[rows[0]])
    return LabelledSeries(table.stem, tuple(series), np.array(labels), tuple(names), tuple(columns))


def _read_ts(path: Path) -> list[tuple[str, np.ndarray]]:
    found = read_ts_cases(path).series
    return [(f"{path}:{number}", values_TC) for number, values_TC in enumerate(found, start=1)]


def _read_file(path: Path, *as_they_stand: str) -> tuple[Table, tuple[str, ...]]:
    """Return a file's table, ids and some other columns in it as they stand there, and what was guessed."""
    read = read_dialect(path, _ID)
    kept = {name: read.raw[name] for name in (_ID, *as_they_stand) if name in read.raw.columns}
    return dataclasses.replace(read.table, frame=read.table.frame.assign(**kept)), read.notes


def _read_table(path: Path, variates: Sequence[str], notes: dict[str, None]) -> list[tuple[str, np.ndarray]]:
    table, guessed = _read_file(path)
    notes.update(dict.fromkeys(guessed))
    _check_columns(table, variates)
    columns = list(variates) or [name for name in table.frame.columns if name not in (_ID, _TIME)]
    several = table.id_col is not None
    return [(f"{path}:{name}" if several else str(path), values_TC) for name, _, values_TC in _each(table, columns)]


def _check_columns(table: Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in table.frame.columns:
            raise DataError(table.label, "columns", f"there is no column {name!r}", nearest(name, table.frame.columns))


def _each(table: Table, columns: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return id, row numbers and values (T, C) of each series."""
    sink = Collector(table.label)
    if not columns:
        raise DataError(table.label, "columns", "columns of variates were expected, found none", "add one a variate")
    codes, keys = series_ids(table, sink)
    values_NC = np.stack([numbers(table, name, sink, "variate") for name in columns], axis=1)
    wrong = np.argwhere(~np.isfinite(values_NC))
    if len(wrong):
        row, column = wrong[0]
        where = f"{table.place(row)}, column {columns[column]!r}"
        sink.add(where, f"a finite number was expected ({len(wrong)} such values)", "fill it in, or leave the row out")
    if _TIME in table.frame.columns:
        times = parse_timestamps(table, _TIME, sink, whole_numbers=None)
        rows = [one.rows for one in group_rows(table, codes, keys, times, sink, sort=False, tz=None)]
    else:
        rows = [np.flatnonzero(codes == number) for number in range(len(keys))]
    return [(str(key), own, values_NC[own].astype(np.float32)) for key, own in zip(keys, rows, strict=True)]
