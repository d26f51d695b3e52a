"""The folder of a run: the recipe it was trained by, its checkpoints, its saved model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mamba_apps.errors import UserError
from mamba_recipes.recipe import Recipe, load

RECIPE_NAME = "recipe.yaml"
RUNS = Path("runs")
# Where training in several processes tells the others, which run the same command, the folder of the run.
_SHARED = "MAMBA_APPS_RUN"


def is_first_process() -> bool:
    """Tell whether this process is the only one of the command, or the first of those that train together."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def new_run(recipe: Recipe, out: Path | None) -> Path:
    """Return the folder of a new run: ``out``, or ``runs/<name>-<time>``; other processes get that of the first.

    Raises:
        UserError: If it already holds a run, or another process cannot know it.
    """
    if not is_first_process():
        told = os.environ.get(_SHARED) or out
        if told is None:
            raise UserError("several processes train, and this one does not know the run's folder", "give --out")
        return Path(told)
    folder = out or RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / RECIPE_NAME).exists():
        raise UserError(f"{folder} already holds a run", f"continue it with --resume {folder}, or choose another --out")
    os.environ[_SHARED] = str(folder)
    return folder


def write_recipe(folder: Path, recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Keep the recipe, every override set, in the run's folder, so that the run can be repeated from it alone."""
    tree = {"recipe": dict(recipe.card), **config}
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{RECIPE_NAME}.partial"
    partial.write_text(f"# Recipe {recipe.name!r} as this run was trained.\n{text}", encoding="utf-8")
    partial.replace(folder / RECIPE_NAME)


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
    return load(str(folder / RECIPE_NAME))
