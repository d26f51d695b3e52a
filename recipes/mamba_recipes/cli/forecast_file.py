"""The file that `mamba-apps forecast` is given, read as it is meant; what was guessed is said."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_datasets.series import Table

_ROLES = ("past", "future", "static")


@dataclass(frozen=True)
class SeriesFile:
    """A file of series.

    Args:
        table: Its table in the long format.
        reading: Its columns, the frequency and what to do about missing steps, as `Forecaster` takes them.
    """

    table: Table
    reading: Mapping[str, Any]


def read_file(arguments: Namespace, named: Mapping[str, Any] | None = None) -> SeriesFile:
    """Read the command's file, and say on stderr what was guessed.

    Args:
        arguments: The command's.
        named: The columns of a trained model, by role; the file's own, where they are called otherwise, get its names.

    Raises:
        DataError: The file cannot be read, or a column's role cannot be told.
    """
    from mamba_datasets.series.guess import guess_table

    roles = {role: tuple((named or vars(arguments))[role]) for role in _ROLES}
    columns = {role: getattr(arguments, role) for role in ("id_col", "time_col", "target_col")}
    covariates = [name for names in roles.values() for name in names]
    guess = guess_table(arguments.file, covariates=covariates, **columns)
    if guess.notes:
        print(f"read: {' · '.join(guess.notes)}", file=sys.stderr, flush=True)
    found = {"id_col": guess.id_col, "time_col": guess.time_col, "target_col": guess.target_col}
    table = guess.table
    if named is not None:
        own = {found[role]: str(named[role]) for role in found}
        ids = own[guess.id_col] if table.id_col is not None else None
        table = dataclasses.replace(table, frame=table.frame.rename(columns=own), id_col=ids)
        found = {role: str(named[role]) for role in found}
    told = {"freq": _freq(arguments.freq), "missing": arguments.missing, "tz": arguments.tz}
    return SeriesFile(table, {**told, **found, **roles})


def read_future(path: Path | None, time_col: str) -> Table | None:
    """Read the file of columns known ahead, in whatever dialect.

    Args:
        path: The file, if there is one.
        time_col: Its column of timestamps, whose time of day may stand in another.

    Raises:
        DataError: It cannot be read.
    """
    if path is None:
        return None
    from mamba_datasets.series.guess import read_dialect, with_clock

    read = read_dialect(path)
    return with_clock(read.table, read.raw, time_col, (), []) if time_col in read.raw.columns else read.table


def _freq(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text
