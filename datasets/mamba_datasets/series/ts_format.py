"""Labelled series of unequal length: the `.ts` text format of the time series classification archives.

A head of lines that begin with "@" names dimensions and classes; each line after "@data" is one case, its dimensions
separated by colons, its values by commas, its class last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest

_AGAIN = "get the file again, or correct this line"


@dataclass(frozen=True, eq=False)
class LabelledSeries:
    """Multivariate series with a class each.

    Args:
        name: The problem's name.
        series: float32 (T, C) each; T may differ.
        labels: Each one's class, as a number (N,).
        classes: The names of the classes.
        variates: The names of the variates (C,); none where they have no names.
    """

    name: str
    series: tuple[np.ndarray, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    variates: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)

    @property
    def channels(self) -> int:
        """The number of variates (C)."""
        return self.series[0].shape[1]


def read_ts(path: str | Path) -> LabelledSeries:
    """Read a `.ts` file with classes.

    Args:
        path: The file.

    Returns:
        The series in the file's order.

    Raises:
        DataError: The file cannot be read, has no classes, or a line is not a case of its head; the error names it.
    """
    return _read(Path(path), labelled=True)


def read_ts_cases(path: str | Path) -> LabelledSeries:
    """Read a `.ts` file, as `read_ts` does; where it has no classes, there are none, and each label is 0."""
    return _read(Path(path), labelled=False)


def _read(path: Path, labelled: bool) -> LabelledSeries:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "file", f"a text file was expected ({error})", "give a .ts file") from None
    head, start = _head(path, lines)
    classes = tuple(head.get("classlabel", "").split()[1:])
    if labelled and not classes:
        raise DataError(path, "@classLabel", "names of classes were expected, found none", "give a file with classes")
    series: list[np.ndarray] = []
    labels: list[int] = []
    for number, line in enumerate(lines[start:], start=start + 1):
        if line.strip():
            values, label = _case(path, number, line, classes)
            if series and values.shape[1] != series[0].shape[1]:
                expected = f"{series[0].shape[1]} dimensions were expected, found {values.shape[1]}"
                raise DataError(path, f"line {number}", expected, _AGAIN)
            series.append(values)
            labels.append(label)
    if not series:
        raise DataError(path, "@data", "cases were expected, found none", "get the file again: it is cut short")
    wanted = head.get("dimensions", str(series[0].shape[1]))
    if wanted != str(series[0].shape[1]):
        expected = f"{wanted} dimensions were expected, found {series[0].shape[1]}"
        raise DataError(path, f"line {start + 1}", expected, _AGAIN)
    return LabelledSeries(head.get("problemname", path.stem), tuple(series), np.array(labels), classes)


def _head(path: Path, lines: list[str]) -> tuple[dict[str, str], int]:
    """Return what the head says, and the number of its lines."""
    head: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.lower() == "@data":
            return head, number
        if text.startswith("@"):
            key, _, value = text[1:].partition(" ")
            head[key.lower()] = value.strip()
        elif text and not text.startswith("#"):
            raise DataError(path, f"line {number}", "a line of the head was expected before @data", "give a .ts file")
    raise DataError(path, "@data", "a line '@data' was expected, found none", "give a .ts file")


def _case(path: Path, number: int, line: str, classes: tuple[str, ...]) -> tuple[np.ndarray, int]:
    dimensions, label = line.strip().split(":"), ""
    if classes:
        label = dimensions.pop()
    if classes and label.strip() not in classes:
        raise DataError(path, f"line {number}", f"a class was expected, found {label[:40]!r}", nearest(label, classes))
    try:
        columns = [np.array(dimension.split(","), dtype=np.float32) for dimension in dimensions]
    except ValueError as error:
        raise DataError(path, f"line {number}", f"numbers were expected ({error})", _AGAIN) from None
    lengths = sorted({len(column) for column in columns})
    if len(lengths) != 1:
        found = f"dimensions of one length were expected, found {lengths}"
        raise DataError(path, f"line {number}", found, _AGAIN)
    values = np.stack(columns, axis=1)
    if not np.isfinite(values).all():
        raise DataError(path, f"line {number}", "finite numbers were expected", "fill in or leave out the case")
    return values, classes.index(label.strip()) if classes else 0
