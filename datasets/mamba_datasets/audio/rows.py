"""The rows of a CSV file that lists sounds, as text with their places; what is amiss with the file is a finding."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mamba_datasets.errors import DataError, check_path
from mamba_datasets.report import Collector

TABLES = (".csv", ".tsv")


class Row(NamedTuple):
    """One row of a table.

    Args:
        number: The line that it ends on, from 1, as editors count.
        cells: Its cells, stripped, by column.
    """

    number: int
    cells: dict[str, str]

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"row {self.number}"


def read_rows(path: str | Path, sink: Collector, columns: Sequence[str] | None = None) -> tuple[list[str], list[Row]]:
    """Read a CSV file; one whose name ends in .tsv has tabs between its cells.

    Args:
        path: The file, in UTF-8.
        sink: Takes rows of another length than the header, which are then left out.
        columns: The names of the columns, where the file has no header and lines that begin with # say nothing.

    Returns:
        The columns, and the rows that are not empty.

    Raises:
        DataError: The file cannot be read as a table, or repeats a column.
    """
    rows = list(_lines(path))
    if columns is None:
        if not rows:
            raise DataError(path, "header", "the file is empty", "give a table with a line of column names")
        (_, header), *rows = rows
        names = [cell.strip() for cell in header]
        for name in names:
            if names.count(name) > 1:
                raise DataError(path, "header", f"column {name!r} appears twice", "rename one of them")
    else:
        names, rows = list(columns), [(number, cells) for number, cells in rows if not cells[0].startswith("#")]
    good = []
    for number, cells in rows:
        if len(cells) == len(names):
            good.append(Row(number, dict(zip(names, (cell.strip() for cell in cells), strict=True))))
        else:
            expected = f"expected {len(names)} cells, found {len(cells)}"
            sink.add(f"row {number}", expected, 'put text with a comma in "quotes"', path)
    return names, good


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    separator = "\t" if str(path).lower().endswith(".tsv") else ","
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            try:
                for cells in reader:
                    if any(cells):
                        yield reader.line_num, cells
            except csv.Error as error:
                place = f"row {reader.line_num}"
                raise DataError(path, place, f"is no CSV: {error}", "mend this line") from None
    except UnicodeDecodeError:
        raise DataError(path, "text", "is no UTF-8 text", "save the table as CSV in UTF-8") from None
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", check_path(path)) from None
