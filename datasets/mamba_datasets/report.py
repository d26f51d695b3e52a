"""What a reader found in a file: single findings, the report of them all, and the collector that gathers or raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mamba_datasets.errors import DataError

_SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """One thing that keeps data from being used, with its place and the remedy.

    Args:
        path: The file, or a word for data that came from memory ("DataFrame").
        where: The place inside: a row, a column, a series and timestamp.
        expected: What was expected there, and what was found.
        remedy: What the person can do about it.
    """

    path: str
    where: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return str(self.error())

    @classmethod
    def of(cls, error: DataError) -> Finding:
        """Return the finding that a raised error is when it is kept."""
        return cls(error.path, error.where, error.expected, error.remedy)

    def error(self) -> DataError:
        """Return the error that this finding is when it is raised."""
        return DataError(self.path, self.where, self.expected, self.remedy)


@dataclass(frozen=True)
class Report:
    """The result of checking one file.

    Args:
        path: The file that was checked.
        kind: The kind of data it was checked as, as in `kinds()`.
        findings: Every problem, in reading order; empty when the file can be used.
        summary: One line on what the file holds; empty when that could not be told.
        notes: What a reader would do to the data and says openly, such as a frequency that it inferred.
    """

    path: str
    kind: str
    findings: tuple[Finding, ...] = ()
    summary: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the file can be used as it is."""
        return not self.findings


class Collector:
    """Takes findings: raises the first one as a `DataError`, or keeps them all.

    Args:
        path: The file that findings are about.
        keep: Whether to keep findings and go on; otherwise the first one is raised.
    """

    def __init__(self, path: str | Path, *, keep: bool = False) -> None:
        self.path = str(path)
        self.keep = keep
        self.findings: list[Finding] = []
        self.notes: list[str] = []

    def add(self, where: str, expected: str, remedy: str, path: str | Path | None = None) -> None:
        """Take one finding.

        Args:
            where: The place inside the file.
            expected: What was expected there, and what was found.
            remedy: What the person can do about it.
            path: The file, where it is another than the collector's.

        Raises:
            DataError: The finding itself, unless findings are kept.
        """
        finding = Finding(self.path if path is None else str(path), where, expected, remedy)
        if not self.keep:
            raise finding.error()
        self.findings.append(finding)

    def note(self, text: str) -> None:
        """Take one line on what the reader did that is not a problem."""
        self.notes.append(text)


def nearest(name: object, known: Iterable[object]) -> str:
    """Return the remedy for a name that is not known: those that it may have been meant for, or the first of them all.

    Args:
        name: The name that is not known.
        known: The names that are.

    Returns:
        "did you mean 'x' or 'y'?", or a list of what there is.
    """
    names = list(dict.fromkeys(str(other) for other in known))
    by_lower = {other.lower().strip(): other for other in names}
    close = difflib.get_close_matches(str(name).lower().strip(), by_lower, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(by_lower[other]) for other in close)}?"
    if len(names) < 2:
        return f"there is only {names[0]!r}" if names else "there is none"
    shown = ", ".join(repr(other) for other in names[:_SHOWN])
    return f"choose one of {shown}{', …' if len(names) > _SHOWN else ''}"
