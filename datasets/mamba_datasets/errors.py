"""The error every reader raises when data cannot be used as it is."""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(r"(?:[\w.]+Error: )?(?P<path>.*?): (?P<where>.*?): (?P<expected>.*); (?P<remedy>.*)")


class DataError(ValueError):
    """Data that a reader refuses, with its place and the remedy.

    Raised in a worker of a `DataLoader`, it arrives as a `DataError` with the same one line.

    Args:
        path: The file, or a word for data that came from memory ("DataFrame").
        where: The place inside: a row, a column, a series and timestamp.
        expected: What was expected there, and what was found.
        remedy: What the person can do about it.
    """

    def __init__(self, path: str | Path, where: str | None = None, expected: str = "", remedy: str = "") -> None:
        if where is None:
            # a DataLoader makes its worker's exception anew from the text of the traceback, which ends in our line
            line = _LINE.fullmatch(str(path).strip().rpartition("\n")[2])
            if line is None:
                raise TypeError("DataError needs path, where, expected and remedy")
            path, where, expected, remedy = line.group("path", "where", "expected", "remedy")
        super().__init__(f"{path}: {where}: {expected}; {remedy}")
        self.path = str(path)
        self.where = where
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str, str]]:
        return type(self), (self.path, self.where, self.expected, self.remedy)


def check_path(path: str | Path) -> str:
    """Return the remedy for a path at which nothing is: where a relative one, such as that of a run, begins is said."""
    return "check the path" if Path(path).is_absolute() else f"check the path, which begins at {Path.cwd()}"
