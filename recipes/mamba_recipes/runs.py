"""The folder of a run: the recipe it was trained by, its checkpoints, its saved model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mamba_apps.errors import UserError
from mamba_recipes.recipe import Recipe, load

RECIPE_NAME = "recipe.yaml"
MODEL_NAME = "model"
RUNS = Path("runs")


def new_run(recipe: Recipe, out: Path | None) -> Path:
    """Return the folder of a new run: ``out``, or ``runs/<name>-<time>``.

    Raises:
        UserError: If it already holds a run.
    """
    folder = out or RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / RECIPE_NAME).exists():
        raise UserError(f"{folder} already holds a run", f"continue it with --resume {folder}, or choose another --out")
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
