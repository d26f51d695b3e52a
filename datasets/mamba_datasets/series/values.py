"""Values in: targets and covariates become finite numbers, ids become text, categories become 0/1 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mamba_datasets.report import Collector, nearest
from mamba_datasets.series.table import Table

MOST_CATEGORIES = 64


@dataclass
class Block:
    """Covariate columns of one role, as numbers.

    Args:
        names: One name a number column; a category's is "column=value".
        values: float64 (rows, len(names)); NaN where the table has no value.
        categories: The categories of each column that was not numeric.
        binary: The names whose values are 0 or 1 by their nature, so that they are never scaled.
        source: For each name the table's column it came from.
    """

    names: list[str] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    binary: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)


def numbers(table: Table, name: str, sink: Collector, role: str) -> np.ndarray:
    """Read one column of numbers.

    Args:
        table: The table.
        name: The column.
        sink: Takes the first value that is no number.
        role: What the column is ("target", "covariate"), for the message.

    Returns:
        float64 (rows,) with NaN for missing values; what is no number is 0 where findings are kept.
    """
    column = table.frame[name]
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if column.dtype == object or _is_text(column):
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        # Text that happens to read as a number is still text, except in a file of text.
        is_text = column.map(lambda value: isinstance(value, str)).to_numpy(dtype=bool) & (not table.is_text)
        wrong = np.flatnonzero((np.isnan(values) & column.notna().to_numpy()) | is_text)
    else:
        values, wrong = np.zeros(len(column)), np.arange(len(column))
    if len(wrong):
        where = f"{table.place(wrong[0])}, column {name!r}"
        more = f" ({len(wrong)} such rows)" if len(wrong) > 1 else ""
        remedy = "correct it" if table.is_text else f"convert the column: pd.to_numeric(frame[{name!r}])"
        if role == "covariate" and table.is_text:
            remedy += "; categories must not look like numbers"
        sink.add(where, f"a number was expected for the {role}, found {column.iloc[wrong[0]]!r}{more}", remedy)
        values[wrong] = 0.0
    return values


def series_ids(table: Table, sink: Collector) -> tuple[np.ndarray, list[str | int]]:
    """Number the rows' series.

    Args:
        table: The table.
        sink: Takes ids that are missing or of mixed types.

    Returns:
        int64 (rows,) the series of each row (-1 without an id), and the ids in the order of their first rows.
    """
    if table.id_col is None:
        return np.zeros(len(table.frame), dtype=np.int64), [table.stem]
    column = table.frame[table.id_col]
    codes, uniques = pd.factorize(column)
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        where = f"{table.place(missing[0])}, column {table.id_col!r}"
        more = f" ({len(missing)} such rows)" if len(missing) > 1 else ""
        sink.add(where, f"a series id was expected, found none{more}", "fill it in or remove the row")
    ids = list(uniques)
    whole = [isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in ids]
    text = [isinstance(value, str) for value in ids]
    if not all(whole) and not all(text):
        odd = ids[text.index(False)] if any(text) else ids[whole.index(False)]
        row = int(np.flatnonzero(codes == ids.index(odd))[0])
        where = f"{table.place(row)}, column {table.id_col!r}"
        expected = f"ids of one type, text or whole numbers, were expected, found {odd!r} ({type(odd).__name__})"
        sink.add(where, expected, f"frame[{table.id_col!r}] = frame[{table.id_col!r}].astype(str)")
    return codes.astype(np.int64), [int(value) if isinstance(value, np.integer) else value for value in ids]


def covariates(
    table: Table, columns: Sequence[str], sink: Collector, known: Mapping[str, Sequence[str]] | None
) -> Block:
    """Read covariate columns of one role.

    Booleans become 0 and 1. Text and categorical columns become one 0/1 column a category, named "column=value", in
    sorted order; a missing category is NaN in all of them.

    Args:
        table: The table.
        columns: The columns to read.
        sink: Takes values that cannot be used.
        known: The categories of the training data's columns that were not numeric: others are refused, and so is text
            in a column that is not among them. None takes them from this table.

    Returns:
        The columns as numbers.
    """
    block = Block()
    parts: list[np.ndarray] = []
    for name in columns:
        column = table.frame[name]
        if not (_is_category(column) if known is None else name in known):
            parts.append(numbers(table, name, sink, "covariate"))
            block.names.append(name)
            block.source.append(name)
            if _is_boolean(column):
                block.binary.append(name)
            continue
        one_hot, categories = _one_hot(table, name, sink, None if known is None else known[name])
        names = [f"{name}={category}" for category in categories]
        parts.extend(one_hot.T)
        block.names += names
        block.binary += names
        block.source += [name] * len(names)
        block.categories[name] = categories
    block.values = np.column_stack(parts) if parts else np.empty((len(table.frame), 0))
    infinite = np.argwhere(np.isinf(block.values))
    for position in sorted(set(infinite[:, 1].tolist())):
        rows = infinite[infinite[:, 1] == position, 0]
        where = f"{table.place(rows[0])}, column {block.source[position]!r}"
        found = f"a finite number was expected, found {block.values[rows[0], position]} ({len(rows)} such rows)"
        sink.add(where, found, "correct the value or leave it empty")
    return block


def _one_hot(
    table: Table, name: str, sink: Collector, known: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    column = table.frame[name]
    missing = column.isna().to_numpy()
    text = column.astype(object).map(str).to_numpy(dtype=object)
    found = sorted(set(text[~missing]))
    categories = tuple(found if known is None else known)
    if len(categories) > MOST_CATEGORIES:
        expected = f"at most {MOST_CATEGORIES} categories were expected, found {len(categories)}"
        sink.add(f"column {name!r}", expected, "make it a number, or group its values")
        return np.zeros((len(column), 0)), ()
    for value in found:
        if value not in categories:
            row = int(np.flatnonzero(text == value)[0])
            where = f"{table.place(row)}, column {name!r}"
            sink.add(
                where, f"a category of the training data was expected, found {value!r}", nearest(value, categories)
            )
    values = (text[:, None] == np.array(categories, dtype=object)[None, :]).astype(np.float64)
    values[missing] = np.nan
    return values, categories


def _is_boolean(column: pd.Series) -> bool:
    """Whether a column holds nothing but booleans and missing values."""
    if column.dtype == object:
        return bool(column.dropna().map(lambda value: isinstance(value, (bool, np.bool_))).all())
    return pd.api.types.is_bool_dtype(column.dtype)


def _is_category(column: pd.Series) -> bool:
    """Whether a covariate is a category: text that nowhere reads as a number, or pandas' own categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    return _is_text(column) and bool(pd.to_numeric(column, errors="coerce").isna().all())


def _is_text(column: pd.Series) -> bool:
    """Whether a column holds text, in any of pandas' dtypes for it."""
    if column.dtype == object:
        return any(isinstance(value, str) for value in column)
    return pd.api.types.is_string_dtype(column.dtype)
