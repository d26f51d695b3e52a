"""The folder of a run: the recipe it was trained by, its checkpoints, its saved model."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import yaml

from mamba_apps.errors import UserError
from mamba_recipes.recipe import Recipe, load

try:
    import fcntl
except ImportError:  # Windows: two runs that begin in one folder at the same moment are not kept apart there
    fcntl = None  # type: ignore[assignment]

RECIPE_NAME = "recipe.yaml"
RUNS = Path("runs")
_LOCK = ".lock"
# Where training in several processes tells the others, which run the same command, the folder of the run.
_SHARED = "MAMBA_APPS_RUN"


def is_first_process() -> bool:
    """Tell whether this process is the only one of the command, or the first of those that train together."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def new_run(recipe: Recipe, out: Path | None, data: object = None) -> Path:
    """Return the folder of a new run: ``out``, or ``runs/<name>-<time>``; other processes get that of the first.

    Args:
        recipe: What is trained.
        out: The folder that was asked for.
        data: The folder of the data, if there is one.

    Raises:
        UserError: If it already holds a run, or what one would write over, or the data, or another process cannot know
            it.
    """
    if not is_first_process():
        told = os.environ.get(_SHARED) or out
        if told is None:
            raise UserError("several processes train, and this one does not know the run's folder", "give --out")
        return Path(told)
    folder = out or RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _refuse_run(folder)
    _refuse_others(folder, data)
    os.environ[_SHARED] = str(folder)
    return folder


@contextlib.contextmanager
def training_in(folder: Path, *, resume: bool) -> Iterator[None]:
    """Make a run's folder and keep other trainings out of it; one that fails before it kept anything leaves no trace.

    Args:
        folder: The folder.
        resume: Whether it holds the run already.

    Raises:
        UserError: It cannot be written to, another process trains there, or it holds a run that is not to be resumed.
    """
    from mamba_apps.training.files import make_directory

    make_directory(folder, "run folder")
    lock = folder / _LOCK
    try:
        with lock.open("ab") as file:
            _take(file, folder)
            try:
                if not resume:
                    _refuse_run(folder)
                yield
            finally:
                lock.unlink(missing_ok=True)
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
        raise


def forget(folder: Path, *, untrained: bool) -> None:
    """Remove what a training that failed wrote, if it kept no checkpoint, so that it can begin again.

    Args:
        folder: The run's folder.
        untrained: Not one step was taken, so that a first checkpoint counts for nothing.
    """
    from mamba_apps.training.checkpoint import LAST_NAME
    from mamba_apps.training.metrics_file import METRICS_NAME

    kept = {path.name for path in folder.glob("*.ckpt")}
    if not kept or (untrained and kept == {LAST_NAME}):
        for name in (RECIPE_NAME, METRICS_NAME, LAST_NAME, f"{LAST_NAME}.sha256"):
            (folder / name).unlink(missing_ok=True)


def write_recipe(folder: Path, recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Keep the recipe, every override set, in the run's folder, so that the run can be repeated from it alone."""
    from mamba_apps.training.files import storage_error, write_text

    tree = {"recipe": {**recipe.card, "name": recipe.name}, **config}
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    path = folder / RECIPE_NAME
    try:
        write_text(path, f"# Recipe {recipe.name!r} as this run was trained.\n{text}")
    except OSError as error:
        raise storage_error("keep the recipe in", path, error) from error


def is_run(path: Path) -> bool:
    """Tell whether ``path`` is a run's folder."""
    return (path / RECIPE_NAME).is_file()


def load_run(folder: Path) -> Recipe:
    """Read the recipe of a run's folder.

    Raises:
        UserError: If it is no run's folder, or its recipe names what it may not.
    """
    if not is_run(folder):
        what = "holds no run" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder}: {what}", f"give a folder that mamba-apps fit wrote, with {RECIPE_NAME} in it")
    recipe = load(str(folder / RECIPE_NAME))
    return replace(recipe, name=str(recipe.card.get("name", recipe.name)))


def _refuse_run(folder: Path) -> None:
    if is_run(folder):
        resume = f"continue it with --resume {shlex.quote(str(folder))}"
        raise UserError(f"{folder} already holds a run", f"{resume}, or choose another --out")


def _refuse_others(folder: Path, data: object) -> None:
    if not folder.is_dir():
        return
    if isinstance(data, str) and folder.resolve() == Path(data).resolve():
        raise UserError(f"{folder} is the folder of the data", "choose another --out")
    from mamba_apps.training.metrics_file import METRICS_NAME
    from mamba_apps.training.saved import MODEL_NAME

    for name in (METRICS_NAME, MODEL_NAME):
        if (folder / name).exists():
            raise UserError(f"{folder / name} is no run's, and would be written over", "choose another --out")


def _take(file: IO[bytes], folder: Path) -> None:
    """Lock an open file for this process, where the file system has locks; workers that it starts do not inherit it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"another process trains in {folder}", "wait until it has ended, or choose another folder with --out"
        ) from None
    except OSError:  # some network mounts have none
        return
    try:
        held = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / _LOCK))
    except FileNotFoundError:
        held = False
    if not held:  # its owner removed it between our opening it and locking it
        raise UserError(f"another process has just trained in {folder}", "run the command again")
