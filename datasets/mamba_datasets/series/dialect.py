"""How a text file of somebody's writes a table: what separates its columns, and what its numbers look like."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

_SEPARATORS = ";\t|,"
_SAMPLE_LINES = 40
_SIGNED = r"\s*[+-]?"
_PLAIN = re.compile(_SIGNED + r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_COMMA = re.compile(_SIGNED + r"(\d+|\d{1,3}([.'\u00a0\u202f ]\d{3})+)(,\d+)?\s*")
_MARK = re.compile("[$€£¥%]")
_MARKED = re.compile(r"^(\s*[+-]?)\s*[$€£¥]\s*|\s*[$€£¥%]\s*$")
_GROUPED = re.compile(_SIGNED + r"\d{1,3}(,\d{3})*(\.\d+)?\s*")
# Enough of a column must be numbers for the rest to be called wrong numbers.
_MOST = 0.9


@dataclass(frozen=True)
class Numbers:
    """A column of numbers.

    Args:
        values: The numbers; text that is none stays as it was, in a column of objects.
        comma: Whether a comma divides whole from part.
        grouped: Whether there are marks between thousands.
        unit: The mark that each of them had: "$", "€", "£", "¥", "%", or none.
    """

    values: pd.Series
    comma: bool = False
    grouped: bool = False
    unit: str = ""


def find_separator(path: Path) -> str:
    """Return what separates the columns of a text file: the mark that gives its first lines equally many columns.

    Args:
        path: A file of text, or one compressed with gzip.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = [line for _, line in zip(range(_SAMPLE_LINES), file, strict=False) if line.strip()]
    best, most = ",", 1
    for mark in _SEPARATORS:
        counts = {len(row) for row in csv.reader(lines, delimiter=mark)}
        if len(counts) == 1 and max(counts) > most:
            best, most = mark, max(counts)
    return best


def as_numbers(column: pd.Series, *, comma_likely: bool) -> Numbers | None:
    """Read a column of text as numbers, with a decimal point or a decimal comma, whether sums of money or per cent.

    Args:
        column: Text and missing values.
        comma_likely: What "1,234" is where the column does not tell: 1.234 if true, else 1234.

    Returns:
        The numbers, or None where most of the column is something else.
    """
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return Numbers(column)
    text = column.dropna().astype(str)
    if not len(text):
        return None
    unit = _MARK.search(text.iloc[0])
    if unit is None or not text.str.contains(unit[0], regex=False).all():  # dollars and euros are no one column
        return _plain_numbers(column, text, comma_likely)
    found = _plain_numbers(column, text.str.replace(_MARKED, r"\1", regex=True), comma_likely)
    return None if found is None else dataclasses.replace(found, unit=unit[0])


def _plain_numbers(column: pd.Series, text: pd.Series, comma_likely: bool) -> Numbers | None:
    enough = _MOST * len(text)
    # Nearly every column is plain numbers or none at all: patterns are for the rest.
    plainly = pd.to_numeric(text, errors="coerce").notna()
    if plainly.all():
        return Numbers(_converted(column, text))
    if not plainly.any() and not text.iloc[0].strip()[:1].isdigit() and text.iloc[0].strip()[:1] not in "+-.":
        return None
    plain, comma, grouped = (text.map(lambda v, p=p: p.fullmatch(v) is not None) for p in (_PLAIN, _COMMA, _GROUPED))
    if plain.sum() >= enough and plain.sum() >= max(comma.sum(), grouped.sum()):
        return Numbers(_converted(column, text[plain].str.strip()))
    both = comma.sum() >= enough and grouped.sum() >= enough
    if comma.sum() >= enough and (comma.sum() > grouped.sum() or (both and comma_likely)):
        clean = text[comma].str.replace("[.'\u00a0\u202f\\s]", "", regex=True)
        marks = bool((clean.str.len() < text[comma].str.strip().str.len()).any())
        decimal = bool(clean.str.contains(",", regex=False).any())
        return Numbers(_converted(column, clean.str.replace(",", ".")), comma=decimal, grouped=marks)
    if grouped.sum() >= enough:
        return Numbers(_converted(column, text[grouped].str.replace(r"[,\s]", "", regex=True)), grouped=True)
    return None


def _converted(column: pd.Series, clean: pd.Series) -> pd.Series:
    """Put the cleaned numbers into the column; what was no number stays as it is, so that a reader can point at it."""
    numbers = pd.to_numeric(clean)
    if len(clean) == int(column.notna().sum()):
        return numbers.reindex(column.index)
    mixed = column.astype(object)
    mixed.loc[numbers.index] = numbers.astype(str)
    return mixed
