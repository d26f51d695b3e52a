"""What `mamba-apps forecast` refuses before anything is learned, in the words of the command line."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError
from mamba_apps.training.files import make_directory
from mamba_datasets.errors import DataError
from mamba_recipes.cli.forecast_file import SeriesFile, read_future
from mamba_recipes.cli.remedies import typed
from mamba_recipes.cli.targets import check_target

_FUTURE = re.compile(r"\bpass (?:futr_df with )?the rows of future_frame")
_ENDINGS = {"out": (".csv", ".parquet"), "plot": (".png", ".svg", ".pdf"), "page": (".html",)}
_LOOKING_BACK = ("step_size", "refit", "page")
_LOOKING_AHEAD = ("plot", "save", "futr")
_LEARNING = ("lookback", "option", "past", "future", "static", "holidays", "max_steps", "short", "freq", "missing")


def check_words(arguments: Namespace, defaults: Mapping[str, Any]) -> None:
    """Refuse options that do not go together or could not be written, and name the files that are not named.

    Args:
        arguments: The command's.
        defaults: What each is where it is not given.

    Raises:
        UserError: One is refused.
    """
    if not arguments.file.exists():
        raise UserError(f"{arguments.file}: there is no such file", "check the path")
    if arguments.cross_validate is None:
        refuse(arguments, defaults, _LOOKING_BACK, "it is for --cross-validate")
    else:
        refuse(arguments, defaults, _LOOKING_AHEAD, "--cross-validate forecasts what is known already")
    stem = arguments.file.name.split(".")[0]
    if arguments.plot is True:
        arguments.plot = arguments.file.with_name(f"{stem}-forecast.png")
    if arguments.cross_validate is not None and arguments.page is None:
        arguments.page = arguments.file.with_name(f"{stem}-cross-validation.html")
    read = [path for path in (arguments.file, arguments.futr) if path is not None]
    for name, endings in _ENDINGS.items():
        _check_target(name, getattr(arguments, name), endings, read)
    if arguments.save is not None:
        make_directory(arguments.save.resolve().parent, "folder of --save")
        if arguments.save.exists() and not arguments.save.is_dir():
            raise UserError(f"--save {arguments.save} is a file", "give a folder")


def check_learned(arguments: Namespace, defaults: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse options that a trained model has settled, unless they say what it has.

    Args:
        arguments: The command's.
        defaults: What each is where it is not given.
        known: What the model has for some of them.

    Raises:
        UserError: One is refused.
    """
    names = [name for name in _LEARNING if name not in known or str(getattr(arguments, name)) != str(known[name])]
    refuse(arguments, defaults, names, f"{arguments.model} has learned already")


def refuse(arguments: Namespace, defaults: Mapping[str, Any], names: Collection[str], why: str) -> None:
    """Refuse options of some names.

    Raises:
        UserError: One of them is given.
    """
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            raise UserError(f"--{name.replace('_', '-')} is given, and {why}", "leave it out")


def check_future(arguments: Namespace, source: SeriesFile, horizon: int) -> None:
    """Refuse a future of covariates that could not be forecast with.

    Args:
        arguments: The command's.
        source: The series.
        horizon: Steps to forecast.

    Raises:
        UserError: There are columns known ahead and no file of them, or a file and no columns.
        DataError: The file or the series cannot be used.
    """
    from mamba_datasets.series import read_series

    columns = ", ".join(source.reading["future"])
    if arguments.futr is None and columns:
        raise UserError(f"the columns known ahead are {columns}, and their future is not given", "give it: --futr FILE")
    if arguments.futr is not None and not columns:
        raise UserError("--futr is given, and no column is known ahead", "name those it has: --future A,B")
    if columns:
        future = read_future(arguments.futr, source.reading["time_col"])
        read_series(source.table, **source.reading).last(1).extend_future(future, horizon)


def in_options(error: DataError) -> DataError:
    """Return a reader's error with the command's options in its remedy, where that names arguments of Python."""
    remedy = _FUTURE.sub("give a row for each step to come of each series", error.remedy)
    remedy = typed(remedy, lambda name, value: f"--{name.replace('_', '-')} {shlex.quote(value)}", formats=False)
    remedy = remedy.replace("in future_frame", "steps to come")
    remedy = remedy.replace("(n_windows)", "(--cross-validate)").replace("(step_size)", "(--step-size)")
    return DataError(error.path, error.where, error.expected, remedy)


def _check_target(name: str, path: Path | None, endings: tuple[str, ...], read: Collection[Path]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise UserError(f"--{name} {path}: unknown ending {path.suffix!r}", f"use {', '.join(endings)}")
    check_target(f"--{name}", path, read)
