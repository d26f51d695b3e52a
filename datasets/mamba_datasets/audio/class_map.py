"""Which class a label stands for: names fixed by hand, by a file, or by the labels that occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mamba_datasets.audio.rows import read_rows
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest

_NAMES = ("display_name", "name", "label", "class", "category")


class ClassMap:
    """Classes in the order of their indices, and the labels that stand for them.

    Args:
        names: The names of the classes.
        aliases: Other labels and the class that each stands for, such as AudioSet's "/m/09x0r".
        source: What the names came from, for errors.
    """

    def __init__(
        self, names: Sequence[str], aliases: dict[str, int] | None = None, source: str | Path = "classes"
    ) -> None:
        for name, count in Counter(names).items():
            if count > 1:
                raise DataError(source, "classes", f"class {name!r} is given twice", "give each class once")
        self.names = list(names)
        self.source = str(source)
        self._index = {**{name: number for number, name in enumerate(names)}, **(aliases or {})}

    @classmethod
    def of_labels(cls, labels: Iterable[str], source: str | Path, sink: Collector, *, least: int) -> ClassMap:
        """Return the sorted labels that occur; too few of them, or two that differ in case only, are findings.

        Args:
            labels: The labels.
            source: Where they occur.
            sink: Takes the findings.
            least: How many classes there must be.
        """
        names = sorted(set(labels))
        if len(names) < least:
            found = f"found one class only, {names[0]!r}" if names else "found no label"
            sink.add("classes", found, f"label clips of at least {least} classes", source)
        by_case: dict[str, str] = {}
        for name in names:
            other = by_case.setdefault(name.casefold(), name)
            if other != name:
                sink.add("classes", f"{other!r} and {name!r} differ in case only", "write both alike", source)
        return cls(names, source=source)

    @classmethod
    def read(cls, path: str | Path) -> ClassMap:
        """Read a file with a row a class: index, name, and AudioSet's mid where there is one.

        Raises:
            DataError: The columns are others, or the indices are not 0, 1, 2, … each once.
        """
        columns, rows = read_rows(path, Collector(path))
        name_column = next((name for name in _NAMES if name in columns), None)
        if name_column is None or "index" not in columns:
            expected = f"expected columns index and {' or '.join(_NAMES)}, found {', '.join(columns)}"
            raise DataError(path, "header", expected, "rename the columns")
        names: dict[int, str] = {}
        for row in rows:
            index = row.cells["index"]
            if not index.isdecimal() or int(index) in names or int(index) >= len(rows):
                expected = f"expected each index from 0 to {len(rows) - 1} once, found {index!r}"
                raise DataError(path, f"{row.place}, column index", expected, "number the classes from 0")
            names[int(index)] = row.cells[name_column]
        aliases = {row.cells["mid"]: int(row.cells["index"]) for row in rows if row.cells.get("mid")}
        return cls([names[number] for number in range(len(rows))], aliases, path)

    def find(self, label: str, table: str | Path, place: str, sink: Collector) -> int | None:
        """Return the index of a label's class; one that stands for none is a finding, and None.

        Args:
            label: The label.
            table: The file that it stands in.
            place: Where.
            sink: Takes the finding.
        """
        index = self._index.get(label)
        if index is None:
            expected = f"label {label!r} is none of the {len(self.names)} classes of {self.source}"
            sink.add(place, expected, nearest(label, self._index), table)
        return index
