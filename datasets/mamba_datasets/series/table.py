"""Files and frames in: one table with the wanted columns, and the name of the place of each of its rows."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mamba_datasets.errors import DataError, check_path
from mamba_datasets.report import nearest

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")

# Fewer than pandas' own: "None" is a category in real files. Ids have none but the empty one: "NA" is a country.
_NO_VALUE = ("", "NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "-nan", "-NaN", "null", "NULL")


@dataclass(frozen=True)
class Table:
    """The wanted columns of a file or frame.

    Args:
        frame: The columns, with a fresh row index.
        label: The path, or "DataFrame".
        stem: What a single series without an id column is called.
        lines: For text files the line of each row in the file; else None.
        is_text: Whether the values were read from text, so that numbers may stand for ids or dates.
        id_col: The id column, or None where the table holds a single series.
    """

    frame: pd.DataFrame
    label: str
    stem: str
    lines: np.ndarray | None
    is_text: bool
    id_col: str | None

    def place(self, row: int) -> str:
        """Name a row: its line in a text file, else its number counted from 0."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def load_table(
    source: Path | str | pd.DataFrame | Table,
    *,
    id_col: str,
    required: Sequence[str] | None,
    separator: str = ",",
    default_id_col: str = "unique_id",
) -> Table:
    """Read the wanted columns of a CSV file, a Parquet file or a frame.

    Args:
        source: A path, a frame, or a table as it was read already.
        id_col: The column of series ids. If it is the default one and absent, the table is a single series.
        required: The other columns that must be there; None reads all there are, those of a text file as text.
        separator: What separates the columns of a CSV file.
        default_id_col: The id column's default name.

    Returns:
        The table.

    Raises:
        DataError: The source cannot be read, is empty, or lacks a column.
    """
    if isinstance(source, pd.DataFrame):
        frame, label, stem = source, "DataFrame", "series"
        missing = [name for name in (id_col, *(required or ())) if name not in frame.columns]
        if any(name in frame.index.names for name in missing):
            frame = frame.reset_index()
        names = [str(name) for name in frame.columns]
        chosen = _choose(names, label, id_col, required, default_id_col)
        return _checked(Table(frame[chosen].reset_index(drop=True), label, stem, None, False, _id(chosen, id_col)))
    if isinstance(source, Table):
        chosen = _choose([str(name) for name in source.frame.columns], source.label, id_col, required, default_id_col)
        return _checked(dataclasses.replace(source, frame=source.frame[chosen], id_col=_id(chosen, id_col)))
    if not isinstance(source, (str, Path)):
        kind = f"{type(source).__module__}.{type(source).__name__}"
        found = f"a path or a pandas DataFrame was expected, found {kind}"
        remedy = "convert it first, with to_pandas()"
        if not hasattr(source, "to_pandas"):
            remedy = "make it a frame with a row a step and columns such as unique_id, ds, y"
        raise DataError("source", "argument", found, remedy)
    path = Path(source)
    label, stem = str(source), path.name.split(".")[0] or "series"
    _check_path(path, label)
    lowered = path.name.lower()
    if lowered.endswith(PARQUET_SUFFIXES):
        frame = _read_parquet(path, label, id_col, required, default_id_col)
        return _checked(Table(frame, label, stem, None, False, _id(frame.columns, id_col)))
    if not lowered.endswith(CSV_SUFFIXES):
        expected = f"a file that ends in {', '.join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))} was expected"
        raise DataError(label, "file name", expected, "save the series as CSV or Parquet")
    separator = "\t" if lowered.endswith(".tsv") and separator == "," else separator
    frame, lines = _read_csv(path, label, id_col, required, separator, default_id_col)
    return _checked(Table(frame, label, stem, lines, True, _id(frame.columns, id_col)))


def _id(columns: Any, id_col: str) -> str | None:
    return id_col if id_col in columns else None


def _checked(table: Table) -> Table:
    if len(table.frame) == 0:
        raise DataError(table.label, "rows", "at least one row was expected, found none", "add the series' rows")
    return table


def _check_path(path: Path, label: str) -> None:
    """Refuse what is not a readable file with something in it."""
    if path.is_dir():
        raise DataError(label, "path", "a file was expected, found a folder", "name one CSV or Parquet file in it")
    if not path.exists():
        there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, there) if there else f"the folder {path.parent} does not exist either"
        raise DataError(label, "path", "no such file", hint if "did you mean" in hint else check_path(path))
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise DataError(label, "file", f"it cannot be opened ({error.strerror})", "check its permissions") from error
    if not first:
        raise DataError(label, "file", "it is empty", "write a header and rows: unique_id,ds,y")


def _choose(
    names: Sequence[str], label: str, id_col: str, required: Sequence[str] | None, default_id_col: str, hint: str = ""
) -> list[str]:
    """Return the columns to read, or refuse a table that lacks one or has one twice."""
    if required is None:
        wanted = [name for name in names if name]
    else:
        wanted = list(required) if id_col == default_id_col and id_col not in names else [id_col, *required]
    counts = collections.Counter(names)
    absent = [name for name in wanted if counts[name] == 0]
    if absent:
        found = f"there is no column {' and no column '.join(repr(name) for name in absent)}"
        raise DataError(label, "columns", found, hint or nearest(absent[0], names))
    for name in wanted:
        if counts[name] > 1:
            raise DataError(label, "columns", f"{counts[name]} columns are called {name!r}", "rename all but one")
    return list(dict.fromkeys(wanted))


def _read_parquet(
    path: Path, label: str, id_col: str, required: Sequence[str] | None, default_id_col: str
) -> pd.DataFrame:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        remedy = "pip install pyarrow, or save the series as CSV"
        raise DataError(label, "file", "reading Parquet needs the package pyarrow", remedy) from error
    try:
        names = list(pq.read_schema(path).names)
        chosen = _choose(names, label, id_col, required, default_id_col)
        frame = pq.read_table(path, columns=chosen).to_pandas()
        if required is None:
            # What a frame was saved with as its row numbers is no column of the table.
            return frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index(drop=frame.index.name is None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        expected = f"a whole Parquet file was expected ({reason})"
        raise DataError(label, "file", expected, "it is damaged or cut short: write or copy it again") from error
    # A frame saved with its index gets that index back; all that was asked for must be columns here.
    lost = [name for name in chosen if name not in frame.columns]
    return (frame.reset_index() if lost else frame)[chosen].reset_index(drop=True)


def _read_csv(
    path: Path, label: str, id_col: str, required: Sequence[str] | None, separator: str, default_id_col: str
) -> tuple[pd.DataFrame, np.ndarray]:
    try:
        _refuse_binary(path, label)
        options: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "index_col": False}
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
        names = [str(name) for name in header.iloc[0]]
        hint = ""
        if len(names) == 1 and separator == ",":
            other = next((mark for mark in ";\t|" if mark in names[0]), None)
            hint = f"its columns are separated by {other!r}: pass separator={other!r}" if other else ""
        chosen = _choose(names, label, id_col, required, default_id_col, hint)
        text = {name: str for name in (names if required is None else (id_col, required[0])) if name in chosen}
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Blank lines are kept at first, so that a row's number leads to its line in the file.
            # All columns are read: with usecols, pandas would drop surplus fields of a row without a word.
            no_value = {name: [""] if name == id_col else list(_NO_VALUE) for name in names}
            options |= {"keep_default_na": False, "na_values": no_value}
            frame = pd.read_csv(path, dtype=text, skip_blank_lines=False, low_memory=False, **options)
    except UnicodeDecodeError as error:
        raise DataError(label, _undecodable(path), "UTF-8 text was expected", "save the file as UTF-8") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = str(error).split("C error: ")[-1].strip()
        remedy = "give every row as many columns as the header, and quote values that hold the separator"
        raise DataError(label, "rows", f"a regular table was expected ({reason})", remedy) from error
    except pd.errors.EmptyDataError as error:
        raise DataError(label, "file", "it holds no columns", "write a header and rows: unique_id,ds,y") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        remedy = "it is damaged or cut short: write or copy it again"
        raise DataError(label, "file", f"a whole gzip file was expected ({error})", remedy) from error
    blank = frame.isna().all(axis=1).to_numpy()
    lines = np.flatnonzero(~blank) + 2
    return frame.loc[~blank, frame.columns if required is None else chosen].reset_index(drop=True), lines


def _refuse_binary(path: Path, label: str) -> None:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        start = file.read(4096)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(label, "encoding", "UTF-8 text was expected, found UTF-16", "save the file as UTF-8")
    if b"\0" in start:
        remedy = "save the series as CSV, or give a Parquet file its ending .parquet"
        raise DataError(label, "file", "text was expected, found a binary file", remedy)


def _undecodable(path: Path) -> str:
    """Name the first line of a text file that is not UTF-8."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number}"
    return "encoding"
