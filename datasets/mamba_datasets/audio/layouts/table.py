"""A table that names sounds, or parts of them, with their labels: a row a clip."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mamba_datasets.audio.class_map import ClassMap
from mamba_datasets.audio.places import Place, Scan, split_name
from mamba_datasets.audio.root import Root, say_absent
from mamba_datasets.audio.rows import Row, read_rows
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath"),
    "label": ("label", "labels", "class", "category", "tag", "tags"),
    "start": ("start", "start_s", "start_seconds", "onset"),
    "end": ("end", "end_s", "end_seconds", "offset"),
    "split": ("split", "subset"),
    "fold": ("fold",),
    "group": ("group", "speaker", "recording"),
}
"""The names by which each column of a table is known, in small letters."""

_FIELD = re.compile(r"\{([^{}]+)\}")


def scan_table(
    table: str | Path,
    sink: Collector,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    class_map: str | Path | None = None,
    multilabel: bool = False,
    separator: str = ";",
    columns: Mapping[str, str | None] | None = None,
    leave_out: str | Path | None = None,
) -> Scan:
    """Read a table's rows without reading a sound.

    Args:
        table: As in `AudioTable`, like all that follow.
        sink: Takes what is wrong.
        root: The folder of the sounds.
        classes: The classes.
        class_map: Their file.
        multilabel: Whether a cell holds any number of labels.
        separator: What stands between them.
        columns: Which column is which.
        leave_out: The list of broken files.

    Returns:
        The classes and clips.
    """
    if classes is not None and class_map is not None:
        raise DataError(table, "classes", "classes and class_map are both given", "give one of them")
    names, rows = read_rows(table, sink)
    folder = Root(root or os.path.dirname(table) or ".", sink, leave_out)
    reader = _Reader(table, _columns(table, names, columns, sink), separator if multilabel else None, sink, folder)
    labels = [reader.labels(row, separator) for row in rows]
    if class_map is not None:
        known = ClassMap.read(class_map)
    elif classes is not None:
        known = ClassMap(classes)
    else:
        all_labels = (label for some in labels for label in some)
        known = ClassMap.of_labels(all_labels, table, sink, least=1 if multilabel else 2)
    scan = Scan(known.names, multilabel=multilabel)
    for row, texts in zip(rows, labels, strict=True):
        place = reader.place(row, texts, known)
        scan.places += [place] if place else []
    if not rows:
        sink.add("rows", "the table lists no sound", "fill it", table)
    say_absent(known.names, scan.places, sink)
    return scan


def _columns(
    table: str | Path, names: list[str], given: Mapping[str, str | None] | None, sink: Collector
) -> dict[str, str]:
    """Return the column, or the pattern of columns, of each role; raise what no row can be read without."""
    given, found = given or {}, {}
    for role, column in given.items():
        if role not in COLUMNS:
            raise DataError(table, "columns", f"there is no role {role!r}", nearest(role, COLUMNS))
        for name in _needed(column, names):
            if name not in names:
                raise DataError(table, "header", f"there is no column {name!r}", nearest(name, names))
        if column is not None:
            found[role] = column
    for role, known in COLUMNS.items():
        fitting = [name for name in names if name.lower() in known and name not in found.values()]
        if role in given or not fitting:
            continue
        if len(fitting) > 1:
            expected = f"expected one column for the {role}, found {', '.join(fitting)}"
            raise DataError(table, "header", expected, f"name it: columns={{{role!r}: {fitting[0]!r}}}")
        found[role] = fitting[0]
    for role in ("path", "label"):
        if role not in found:
            expected = f"expected a column {' or '.join(COLUMNS[role])}, found {', '.join(names)}"
            raise DataError(table, "header", expected, f"name it: columns={{{role!r}: ...}}")
    used = {name for column in found.values() for name in _needed(column, names)}
    if passed := [name for name in names if name not in used]:
        sink.note(f"columns passed over: {', '.join(passed)}")
    return found


def _needed(column: str | None, names: list[str]) -> list[str]:
    """Return the columns that a column's name, or a pattern with names in braces, needs."""
    if column is None:
        return []
    return [column] if column in names else _FIELD.findall(column) or [column]


class _Reader:
    """Turns rows into clips, or into findings."""

    def __init__(
        self, table: str | Path, columns: dict[str, str], separator: str | None, sink: Collector, root: Root
    ) -> None:
        self.table, self.columns, self.separator, self.sink, self.root = table, columns, separator, sink, root
        self._seen: dict[tuple[str, float, float | None], int] = {}

    def labels(self, row: Row, usual: str) -> list[str]:
        """Return a row's labels: any number in a multi-label set, else one, without the usual separator in it."""
        cell = self._cell(row, "label")
        if self.separator is not None:
            return [label for label in map(str.strip, cell.split(self.separator)) if label]
        if not cell:
            self._refuse(row, "label", "expected a label, found nothing", "fill the cell")
        elif usual in cell:
            remedy = "give multilabel=True, or another separator"
            self._refuse(row, "label", f"expected one label, found {cell!r}", remedy)
        else:
            return [cell]
        return []

    def place(self, row: Row, labels: list[str], known: ClassMap) -> Place | None:
        """Return the clip of a row; None where it is left out or a finding."""
        before = len(self.sink.findings)
        if not labels and self.separator is None:
            return None
        indices = [known.find(label, self.table, self._where(row, "label"), self.sink) for label in labels]
        path = self.root.find(self._cell(row, "path"), self._where(row, "path"), self.table)
        start, end = self._seconds(row, "start") or 0.0, self._seconds(row, "end")
        if end is not None and end <= start:
            self._refuse(row, "end", f"expected an end after {start:g} s, found {end:g} s", "mend the times")
        fold, split = self._fold(row), self._cell(row, "split")
        if "split" in self.columns and not split:
            self._refuse(row, "split", "expected a split, found nothing", "fill the cell")
        if path is None or len(self.sink.findings) > before:
            return None
        earlier = self._seen.setdefault((path, start, end), row.number)
        if earlier != row.number:
            remedy = "remove one of them; several labels of a clip go into one cell, with multilabel=True"
            self.sink.add(row.place, f"repeats row {earlier}: the same part of {path}", remedy, self.table)
            return None
        classes = tuple(sorted({index for index in indices if index is not None}))
        group = self._cell(row, "group") or None
        return Place(path, classes, start, end, split_name(split) or None, fold, group, f"{row.place} of {self.table}")

    def _where(self, row: Row, role: str) -> str:
        return f"{row.place}, column {self.columns[role]}"

    def _refuse(self, row: Row, role: str, expected: str, remedy: str) -> None:
        self.sink.add(self._where(row, role), expected, remedy, self.table)

    def _cell(self, row: Row, role: str) -> str:
        column = self.columns.get(role)
        if column is None:
            return ""
        return row.cells[column] if column in row.cells else _FIELD.sub(lambda field: row.cells[field[1]], column)

    def _seconds(self, row: Row, role: str) -> float | None:
        cell = self._cell(row, role)
        if not cell:
            return None
        try:
            seconds = float(cell)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            self._refuse(row, role, f"expected seconds from 0, found {cell!r}", "mend the times")
            return None
        return seconds

    def _fold(self, row: Row) -> int | None:
        if "fold" not in self.columns:
            return None
        cell = self._cell(row, "fold")
        if not cell.isdecimal():
            self._refuse(row, "fold", f"expected a whole number from 0, found {cell!r}", "number the folds")
            return None
        return int(cell)
