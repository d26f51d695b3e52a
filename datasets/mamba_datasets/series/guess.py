"""A file that somebody really has: its separators, dates and columns guessed, and every guess said.

What comes out is the long format, as `read_series` takes it; what cannot be told is asked for by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError
from mamba_datasets.series.dates import as_dates
from mamba_datasets.series.dialect import as_numbers, find_separator
from mamba_datasets.series.table import PARQUET_SUFFIXES, Table, load_table

_TIME_NAMES = ("ds", "date", "datetime", "timestamp", "time", "datum", "day", "hour", "week", "month", "period", "year")
_ID_NAMES = ("unique_id", "id", "series", "series_id", "item_id", "sku", "store", "shop", "product", "item", "name")
_TARGET_NAMES = ("y", "value", "target", "sales", "sold", "demand", "quantity", "count", "volume", "umsatz", "wert")
_HOUR_NAMES = ("hour", "hr", "stunde", "heure", "hora")
_CLOCK = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
_MANY_DATES = 3


@dataclass(frozen=True)
class Dialect:
    """A file's table, its numbers and dates read.

    Args:
        table: The table.
        raw: Its columns as they stand in the file.
        numeric: The columns of numbers; one may hold a few values that are none, as they stand in the file.
        notes: What was guessed, a phrase each.
    """

    table: Table
    raw: pd.DataFrame
    numeric: frozenset[str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """A table in the long format, and what was guessed of it.

    Args:
        table: The table.
        id_col: Its column of ids; the default name where it holds one series.
        time_col: Its column of timestamps or whole numbers.
        target_col: Its column of targets.
        notes: What was guessed, a phrase each.
    """

    table: Table
    id_col: str
    time_col: str
    target_col: str
    notes: tuple[str, ...]


def guess_table(
    path: Path | str,
    *,
    id_col: str | None = None,
    time_col: str | None = None,
    target_col: str | None = None,
    covariates: Sequence[str] = (),
) -> Guess:
    """Read a CSV or Parquet file whatever its dialect and shape, and find the roles of its columns.

    Args:
        path: The file: long (a row a series and step), wide (a column a series), or wide with a column a date.
        id_col: The column of series ids; None finds it.
        time_col: The column of timestamps; None finds it.
        target_col: The column of targets; None finds it.
        covariates: Columns that are neither.

    Returns:
        The table and what was guessed.

    Raises:
        DataError: The file cannot be read, a column that was named is not there, or a role cannot be told.
    """
    read = read_dialect(path, id_col)
    table, notes, asked_id = read.table, list(read.notes), id_col
    named = [name for name in (id_col, time_col, target_col, *covariates) if name is not None]
    _refuse_unknown(table, named)
    dated = [name for name in table.frame.columns if name not in named and as_dates(pd.Series([name])) is not None]
    if time_col is None and len(dated) >= _MANY_DATES:
        return _across(table, dated, id_col, notes)
    time_col = _find_time(table, time_col, notes)
    table = with_clock(table, read.raw, time_col, named, notes)
    rest = [name for name in table.frame.columns if name not in (time_col, *covariates)]
    numeric = [name for name in rest if name in read.numeric]
    words = [name for name in rest if name not in numeric and table.frame[name].nunique() == 1]
    told = "unique_id" in rest or _first_named(words, _ID_NAMES) is not None
    if id_col is None and (told or table.frame[time_col].duplicated().any()):
        table, id_col = _find_id(table, rest, time_col, numeric, target_col, notes)
        rest = [name for name in table.frame.columns if name not in (time_col, *covariates)]
    values = [name for name in numeric if name != id_col]
    if target_col is None and id_col is None and "y" not in values and len(values) > 1:
        return _wide(table, time_col, values, covariates, notes)
    others = [name for name in rest if name not in (id_col, *values)]
    target_col = _find_target(table, target_col, values, others, notes)
    frame_id = "unique_id" if id_col is None else id_col
    if id_col is not None and id_col in read.raw.columns:
        # "007" is an id of its own, and so is "NA" once its column is known to be one of ids.
        if id_col != asked_id and read.raw[id_col].isna().any():
            again = guess_table(path, id_col=id_col, time_col=time_col, target_col=target_col, covariates=covariates)
            return dataclasses.replace(again, notes=tuple(dict.fromkeys([*notes, *again.notes])))
        table = dataclasses.replace(table, frame=table.frame.assign(**{id_col: read.raw[id_col]}))
    table = dataclasses.replace(table, id_col=id_col)
    return Guess(_in_order(table, id_col, time_col, notes), frame_id, time_col, target_col, tuple(notes))


def read_dialect(path: Path | str, id_col: str | None = None) -> Dialect:
    """Read all columns of a file, its numbers and dates in whatever way it writes them.

    Args:
        path: A CSV or Parquet file.
        id_col: Its column of series ids, if that is known: "NA" is one of them there, and a missing value elsewhere.

    Returns:
        The table and what was guessed.

    Raises:
        DataError: The file cannot be read.
    """
    path, notes = Path(path), list[str]()
    is_text = not path.name.lower().endswith(PARQUET_SUFFIXES)
    separator = find_separator(path) if is_text and path.is_file() else ","
    if separator != "," and not path.name.lower().endswith(".tsv"):
        notes.append(f"columns separated by {'tabs' if separator == chr(9) else repr(separator)}")
    table = load_table(path, id_col=id_col or "", required=None, separator=separator)
    columns: dict[str, pd.Series] = {}
    numeric: set[str] = set()
    comma = False
    for name in table.frame.columns:
        column = table.frame[name]
        if not name or (name.startswith("Unnamed") and _counts(column)):
            continue
        dates = as_dates(column)
        numbers = as_numbers(column, comma_likely=separator != ",") if dates is None else None
        if dates is not None:
            unsure = f" (it could be {dates.unsure} as well)" if dates.unsure else ""
            notes += [f"{name!r} read as {dates.how}{unsure}"] if dates.how else []
        elif numbers is not None:
            numeric.add(name)
            comma |= numbers.comma
            notes += [f"{name!r} in {numbers.unit}"] if numbers.unit else []
        columns[name] = dates.values if dates is not None else numbers.values if numbers is not None else column
    notes += ["a decimal comma"] if comma else []
    frame = pd.DataFrame(columns, index=table.frame.index)
    return Dialect(dataclasses.replace(table, frame=frame), table.frame, frozenset(numeric), tuple(notes))


def _refuse_unknown(table: Table, names: Sequence[str]) -> None:
    from mamba_datasets.report import nearest

    for name in names:
        if name not in table.frame.columns:
            found = f"there is no column {name!r}"
            raise DataError(table.label, "columns", found, nearest(name, list(table.frame.columns)))


def _find_time(table: Table, given: str | None, notes: list[str]) -> str:
    if given is not None:
        return given
    frame = table.frame
    dated = [name for name in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[name].dtype)]
    whole = [
        name
        for name in frame.columns
        if _whole(frame[name])
        and (name.lower() in (*_TIME_NAMES, "step", "t", "index") or _is_saved_index(frame[name]))
    ]
    # Of a column that is called so and holds something else the reader says what is wrong with it.
    called = _first_named(list(frame.columns), _TIME_NAMES)
    found = _first_named(dated, _TIME_NAMES) or next(iter(dated or whole), called)
    if found is None:
        expected = "a column of dates was expected, found none"
        raise DataError(table.label, "columns", expected, "name it: --time-col COLUMN (time_col)")
    others = [name for name in dated if name != found]
    if found != "ds" or others:
        notes.append(f"time in {found!r}" + (f" (not {', '.join(map(repr, others))})" if others else ""))
    return found


def with_clock(table: Table, raw: pd.DataFrame, time_col: str, named: Sequence[str], notes: list[str]) -> Table:
    """Add the time of day to dates that stand there several times, where another column has it.

    Args:
        table: The table.
        raw: Its columns as they stand in the file.
        time_col: Its column of dates.
        named: Columns that are something else.
        notes: Takes what was found, a phrase.
    """
    frame = table.frame
    dates = frame[time_col]
    whole_days = pd.api.types.is_datetime64_any_dtype(dates.dtype) and bool(
        (dates.dropna().dt.normalize() == dates.dropna()).all()
    )
    if not whole_days or not dates.duplicated().any():
        return table
    for name in frame.columns.difference([time_col, *named], sort=False):
        column = frame[name]
        text = raw[name].astype(str).str.strip()
        if name.lower() in _HOUR_NAMES and _whole(column) and column.between(0, 23).all():
            clock = pd.to_timedelta(column, unit="h")
        elif text.str.fullmatch(_CLOCK).all():
            clock = pd.to_timedelta(text.where(text.str.count(":") > 1, text + ":00"))
        else:
            continue
        if (dates + clock).nunique() > dates.nunique() and not _of_series(clock, raw, dates):
            notes.append(f"time of day in {name!r}")
            return dataclasses.replace(table, frame=frame.assign(**{time_col: dates + clock}).drop(columns=name))
    return table


def _of_series(clock: pd.Series, raw: pd.DataFrame, dates: pd.Series) -> bool:
    """Return whether a time of day says something of each series, such as when a shop opens, and not when a row was."""
    for name in raw.columns:
        text = raw[name].astype(str).str.strip()
        plain = pd.to_numeric(text, errors="coerce").notna().all() and name.lower() not in _ID_NAMES
        if plain or text.str.fullmatch(_CLOCK).all() or pd.DataFrame({"id": text, "at": dates}).duplicated().any():
            continue
        if int(clock.groupby(text).nunique().max()) == 1 and text.duplicated().any():
            return True
    return False


def _find_id(
    table: Table, rest: Sequence[str], time_col: str, numeric: Sequence[str], target: str | None, notes: list[str]
) -> tuple[Table, str | None]:
    """Return the column, or two joined into one, that tells the series apart."""
    frame = table.frame
    words = [name for name in rest if name not in numeric and name != target]
    counted = [name for name in numeric if name != target and _whole(frame[name]) and name.lower() in _ID_NAMES]
    candidates = sorted([*words, *counted], key=lambda name: (not _is_named(name, _ID_NAMES), rest.index(name)))
    for name in candidates:
        if not frame.duplicated([name, time_col]).any():
            notes += [] if name == "unique_id" else [f"series in {name!r}"]
            return table, name
    for place, first in enumerate(candidates):
        for second in candidates[place + 1 :]:
            if not frame.duplicated([first, second, time_col]).any():
                joined = f"{first}/{second}"
                notes.append(f"series in {first!r} and {second!r} together")
                both = frame[first].astype(str) + "/" + frame[second].astype(str)
                return dataclasses.replace(table, frame=frame.assign(**{joined: both})), joined
    # The reader says which timestamp stands there twice.
    return table, candidates[0] if candidates else None


def _find_target(
    table: Table, given: str | None, numeric: Sequence[str], others: Sequence[str], notes: list[str]
) -> str:
    if given is not None:
        return given
    # Of a column that is called so and holds no numbers the reader says what is wrong with it.
    called = _first_named(numeric, _TARGET_NAMES) or _first_named(others, _TARGET_NAMES)
    found = called or (numeric[0] if len(numeric) == 1 else None)
    if found is None:
        what = f"several could be it: {', '.join(map(repr, numeric))}" if numeric else "found none"
        expected = f"a column of numbers to forecast was expected, {what}"
        raise DataError(table.label, "columns", expected, "name it: --target-col COLUMN (target_col)")
    notes += [] if found == "y" else [f"target in {found!r}"]
    return found


def _wide(table: Table, time_col: str, values: Sequence[str], kept: Sequence[str], notes: list[str]) -> Guess:
    """Lay the columns of a wide table under each other."""
    table = _in_order(table, None, time_col, notes)
    long = table.frame.melt([time_col, *kept], list(values), var_name="unique_id", value_name="y")
    lines = None if table.lines is None else np.tile(table.lines, len(values))
    notes.append(f"a series a column, {len(values)} of them")
    return Guess(
        dataclasses.replace(table, frame=long, lines=lines, id_col="unique_id"),
        "unique_id",
        time_col,
        "y",
        tuple(notes),
    )


def _across(table: Table, dated: Sequence[str], id_col: str | None, notes: list[str]) -> Guess:
    """Lay the rows of a table with a column a date under each other."""
    frame = table.frame
    others = [name for name in frame.columns if name not in dated]
    words = [name for name in others if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
    chosen = id_col or _first_named(others, _ID_NAMES) or next((n for n in words if frame[n].is_unique), None)
    ids = frame[chosen] if chosen is not None else pd.Series(np.arange(len(frame)), index=frame.index)
    dates = as_dates(pd.Series(list(dated)))
    assert dates is not None  # noqa: S101  (each of them is a date)
    notes.append(f"a date a column, {len(dated)} of them" + (f" ({dates.how})" if dates.how else ""))
    notes.append(f"series in {chosen!r}" if chosen is not None else "a series a row")
    order = np.argsort(dates.values.to_numpy(), kind="stable")
    values = frame[[dated[place] for place in order]].to_numpy().reshape(-1)
    long = pd.DataFrame(
        {
            "unique_id": ids.repeat(len(dated)).to_numpy(),
            "ds": np.tile(dates.values.to_numpy()[order], len(frame)),
            "y": pd.Series(values, dtype="float64" if values.dtype != object else object),
        }
    )
    lines = None if table.lines is None else np.repeat(table.lines, len(dated))
    found = dataclasses.replace(table, frame=long, lines=lines, id_col="unique_id")
    return Guess(found, "unique_id", "ds", "y", tuple(notes))


def _in_order(table: Table, id_col: str | None, time_col: str, notes: list[str]) -> Table:
    """Sort rows by time where a series has them in another order, such as the newest first."""
    frame = table.frame
    times = frame[time_col]
    groups = [times] if id_col is None else [rows for _, rows in times.groupby(frame[id_col], sort=False)]
    if frame[time_col].isna().any() or all(rows.is_monotonic_increasing for rows in groups):
        return table
    notes.append("rows sorted by time")
    order = np.argsort(times.to_numpy(), kind="stable")
    lines = None if table.lines is None else table.lines[order]
    return dataclasses.replace(table, frame=frame.iloc[order].reset_index(drop=True), lines=lines)


def _first_named(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for wanted in known for name in names if name.lower() == wanted), None)


def _is_named(name: str, known: Sequence[str]) -> bool:
    return name.lower() in known


def _whole(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype) and bool((column.dropna() % 1 == 0).all())


def _is_saved_index(column: pd.Series) -> bool:
    """Whether a column without a name runs upwards: the index that a frame was saved with, such as years."""
    return str(column.name).startswith("Unnamed") and column.is_monotonic_increasing and column.is_unique


def _counts(column: pd.Series) -> bool:
    """Whether a column is a frame's saved row numbers."""
    numbers = pd.to_numeric(column, errors="coerce")
    return bool((numbers == np.arange(len(column))).all())
