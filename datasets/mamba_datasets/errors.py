"""The error every reader raises when data cannot be used as it is."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """Data that a reader refuses, with its place and the remedy.

    Args:
        path: The file, or a word for data that came from memory ("DataFrame").
        where: The place inside: a row, a column, a series and timestamp.
        expected: What was expected there, and what was found.
        remedy: What the person can do about it.
    """

    def __init__(self, path: str | Path, where: str, expected: str, remedy: str) -> None:
        super().__init__(f"{path}: {where}: {expected}; {remedy}")
        self.path = str(path)
        self.where = where
        self.expected = expected
        self.remedy = remedy
