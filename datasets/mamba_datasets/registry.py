"""The readers' registry: which kinds of data can be checked, and the check of one path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_datasets.errors import DataError
from mamba_datasets.report import Finding, Report, nearest

__all__ = ["register_reader", "check", "kinds", "guess_kind", "Report", "Finding"]

Checker = Callable[..., Report]


@dataclass(frozen=True)
class _Reader:
    checker: Checker
    suffixes: tuple[str, ...]


_readers: dict[str, _Reader] = {}

# The package's own readers, imported when a kind is first asked for.
_BUILT_IN = ("mamba_datasets.series.check",)


def register_reader(kind: str, suffixes: Sequence[str] = ()) -> Callable[[Checker], Checker]:
    """Register a function that checks one kind of data.

    Args:
        kind: The name of the kind, as in `mamba-apps check PATH --as KIND`.
        suffixes: File endings that suggest the kind, such as ".csv".

    Returns:
        A decorator for the checker: `checker(path, **options) -> Report`, which gathers every problem it can.

    Raises:
        ValueError: The kind is registered already.
    """
    if kind in _readers:
        raise ValueError(f"the kind {kind!r} is registered already")

    def add(checker: Checker) -> Checker:
        _readers[kind] = _Reader(checker, tuple(suffix.lower() for suffix in suffixes))
        return checker

    return add


def kinds() -> list[str]:
    """Return the kinds of data that can be checked."""
    for module in _BUILT_IN:
        importlib.import_module(module)
    return sorted(_readers)


def guess_kind(path: str | Path) -> str:
    """Tell the kind of data from a file's name.

    Args:
        path: The file.

    Returns:
        The one kind whose endings fit.

    Raises:
        DataError: None or several fit.
    """
    names, name = kinds(), Path(path).name.lower()
    fitting = [kind for kind in names if name.endswith(_readers[kind].suffixes)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"its name fits the kinds {fitting}" if fitting else "its name fits no kind of data"
    raise DataError(path, "kind", found, f"name one: --as {' | '.join(fitting or names)}")


def check(path: str | Path, kind: str | None = None, **options: Any) -> Report:
    """Check whether a file can be used, and gather every problem.

    Args:
        path: The file.
        kind: The kind of data in it; None guesses it from the name.
        options: What the kind's reader takes, such as `freq` for series.

    Returns:
        The findings; none means that the file can be used.

    Raises:
        DataError: The kind is unknown, or cannot be guessed.
    """
    if kind is None:
        kind = guess_kind(path)
    elif kind not in kinds():
        raise DataError(path, "kind", f"there is no kind of data {kind!r}", nearest(kind, kinds()))
    return _readers[kind].checker(path, **options)
