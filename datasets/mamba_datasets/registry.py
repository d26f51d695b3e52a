"""The readers' registry: which kinds of data can be checked, and the check of one path."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from mamba_datasets.errors import DataError
from mamba_datasets.report import Finding, Report, nearest

__all__ = ["register_reader", "check", "kinds", "guess_kind", "Report", "Finding"]

Checker = Callable[..., Report]


@dataclass(frozen=True)
class _Reader:
    checker: Checker
    suffixes: tuple[str, ...]
    fits_folder: Callable[[Path], bool]


_SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_readers: dict[str, _Reader] = {}

# The package's own readers, imported when a kind is first asked for.
_BUILT_IN = (
    "mamba_datasets.series.check",
    "mamba_datasets.series.check_ltsf",
    "mamba_datasets.images.check",
    "mamba_datasets.images.check_pairs",
    "mamba_datasets.audio.check",
    "mamba_datasets.volumes.check",
)


def register_reader(
    kind: str, suffixes: Sequence[str] = (), fits_folder: Callable[[Path], bool] = lambda folder: False
) -> Callable[[Checker], Checker]:
    """Register a function that checks one kind of data.

    Args:
        kind: The name of the kind, as in `mamba-apps check PATH --as KIND`.
        suffixes: File endings that suggest the kind, such as ".csv".
        fits_folder: Tells at a glance whether a folder looks like one of the kind.

    Returns:
        A decorator for the checker: `checker(path, **options) -> Report`, which gathers every problem it can.

    Raises:
        ValueError: The kind is registered already.
    """
    if kind in _readers:
        raise ValueError(f"the kind {kind!r} is registered already")

    def add(checker: Checker) -> Checker:
        _readers[kind] = _Reader(checker, tuple(suffix.lower() for suffix in suffixes), fits_folder)
        return checker

    return add


def kinds() -> list[str]:
    """Return the kinds of data that can be checked."""
    for module in _BUILT_IN:
        importlib.import_module(module)
    return sorted(_readers)


def guess_kind(path: str | Path) -> str:
    """Tell the kind of data from a file's name, or from what lies in a folder.

    Args:
        path: The file or folder.

    Returns:
        The one kind that fits.

    Raises:
        DataError: None or several fit.
    """
    names, name = kinds(), Path(path).name.lower()
    if os.path.isdir(path):
        fitting = [kind for kind in names if _readers[kind].fits_folder(Path(path))]
    else:
        fitting = [kind for kind in names if name.endswith(_readers[kind].suffixes)]
    if len(fitting) == 1:
        return fitting[0]
    what = "what it holds" if os.path.isdir(path) else "its name"
    if name.endswith(_SHEETS):
        raise DataError(path, "kind", "a spreadsheet is not read", "save its table as CSV")
    found = f"{what} fits the kinds {fitting}" if fitting else f"{what} fits no kind of data"
    raise DataError(path, "kind", found, f"name one: --as {' | '.join(fitting or names)}")


def check(path: str | Path, kind: str | None = None, **options: Any) -> Report:
    """Check whether a file or folder can be used, and gather every problem.

    Args:
        path: The file or folder.
        kind: The kind of data in it; None guesses it.
        options: What the kind's reader takes, such as `freq` for series.

    Returns:
        The findings; none means that the file can be used.

    Raises:
        DataError: The kind is unknown, or cannot be guessed; or an option is of another kind than its reader takes.
    """
    if kind is None:
        kind = guess_kind(path)
    elif kind not in kinds():
        raise DataError(path, "kind", f"there is no kind of data {kind!r}", nearest(kind, kinds()))
    checker = _readers[kind].checker
    _check_options(checker, path, options)
    return checker(path, **options)


def _check_options(checker: Checker, path: str | Path, options: dict[str, Any]) -> None:
    """Refuse values that are not what a checker's annotations say: they come from a command line."""
    parameters, hints = inspect.signature(checker).parameters, get_type_hints(checker)
    for name, value in options.items():
        hint = hints.get(name, Any)
        if hint is Any or name not in parameters or parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            continue  # the reader judges it
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds = tuple(get_origin(part) or part for part in parts)
        # text is a sequence to Python, and a truth a number
        wrong = isinstance(value, bool | str) and type(value) not in kinds
        if wrong or not isinstance(value, kinds):
            written = parameters[name].annotation
            raise DataError(path, f"option {name!r}", f"{written} was expected, found {value!r}", "correct it")
