"""Recipes: typed YAML for the trainer, with a card that says what to expect and, where it is compared, how.

A recipe has LightningCLI's blocks (``model``, ``data``, ``trainer``) plus ``recipe:``, the card, and optionally
``compare:``, the candidates. Reading one imports neither torch nor anything that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mamba_apps.errors import UserError
from mamba_datasets.report import nearest
from mamba_recipes.safety import check_class_paths
from mamba_recipes.settings import RecipeLoader, apply_overrides, lookup

CONFIGS = Path(__file__).resolve().parent / "configs"
CARD_KEYS = ("title", "domain", "paper", "expected", "hardware", "time", "seed", "command", "metric", "sample")
BLOCKS = ("recipe", "compare", "model", "data", "trainer", "seed_everything")
_BUDGETS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_seconds")
FAMILIES = ("mamba", "transformer", "linear", "naive", "other")


@dataclass(frozen=True)
class Metric:
    """A recipe's primary metric.

    Args:
        name: Its key among the metrics that a candidate returns.
        direction: "min" or "max", whichever is better.
        label: How a report writes it.
        unit: What it is counted in; may be empty.
    """

    name: str
    direction: str
    label: str
    unit: str = ""

    def better(self, a: float, b: float) -> bool:
        """Tell whether ``a`` is better than ``b``."""
        return a < b if self.direction == "min" else a > b


@dataclass(frozen=True)
class CandidateSpec:
    """One row of a comparison, as the recipe writes it.

    Args:
        name: The row's name.
        family: What it is: mamba, transformer, linear, naive or other; the report's words go by it.
        twin: The candidate that differs from this one only in its mixer, if there is one.
        overrides: Dotted settings on the recipe, for a candidate that Lightning trains.
        class_path: A class with ``fit``, ``evaluate`` and ``plots``, for one that it does not train.
        init_args: That class's arguments.
    """

    name: str
    family: str = "other"
    twin: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    class_path: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompareBlock:
    """How a recipe is compared: the budget each candidate gets, the candidates, and short names for sweeps."""

    budget: str
    candidates: tuple[CandidateSpec, ...]
    sweeps: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked.

    Args:
        name: Its name, the file's stem.
        path: Its file.
        card: The ``recipe:`` block.
        metric: The primary metric.
        config: The blocks that LightningCLI reads: ``model``, ``data``, ``trainer``, ``seed_everything``.
        compare: The ``compare:`` block, if it has one.
    """

    name: str
    path: Path
    card: Mapping[str, Any]
    metric: Metric
    config: Mapping[str, Any]
    compare: CompareBlock | None

    def with_overrides(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Lightning blocks with dotted ``overrides`` set, every class path checked again.

        A budget among them, such as ``trainer.max_steps``, takes the place of the recipe's own.

        Raises:
            UserError: If one names no block, names a class that it may not, or lets another metric be monitored without
                saying which values of it are better.
        """
        for key in overrides:
            block = key.split(".")[0]
            if block not in BLOCKS[2:]:
                raise UserError(f"{self.name}: unknown setting {key!r}", nearest(block, BLOCKS[2:]))
        monitor = overrides.get("trainer.monitor")
        if monitor not in (None, lookup(self.config, "trainer.monitor")) and "trainer.mode" not in overrides:
            raise UserError(
                f"trainer.monitor is {monitor!r}, and not which values of it are better",
                "add --trainer.mode min or --trainer.mode max",
            )
        given = {key: overrides[key] for key in _BUDGETS if overrides.get(key) is not None}
        own = {key: None for key in _BUDGETS if given and key not in given and lookup(self.config, key) is not None}
        config = apply_overrides(self.config, {**own, **overrides})
        check_class_paths(config, self.path)
        return config


def shipped() -> dict[str, Path]:
    """Return the shipped recipes: name -> file."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*/*.yaml"))}


def find(name_or_path: str) -> Path:
    """Return the file of a recipe given by name or by path; of a file and a recipe of one name, the file.

    Raises:
        UserError: If there is no such recipe (with the nearest name) or file.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"{path}: there is no such file", "give a recipe's name (see mamba-apps recipes) or a file")
        return path
    known = shipped()
    if name_or_path in known:  # also where a folder has that name: data are often kept in one
        return known[name_or_path]
    if path.is_dir() or len(path.parts) > 1:
        found = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {found}", "give a recipe's name (see mamba-apps recipes) or file")
    raise UserError(f"there is no recipe {name_or_path!r}", nearest(name_or_path, known))


def load(name_or_path: str) -> Recipe:
    """Read and check a recipe given by name or path; imports nothing that it names.

    Raises:
        UserError: If it is missing, no valid recipe, or names a class outside the allowed prefixes.
    """
    path = find(name_or_path)
    tree = _read(path)
    check_class_paths(tree, path)
    unknown = set(tree) - set(BLOCKS)
    if unknown:
        key = sorted(unknown)[0]
        raise UserError(f"{path}: unknown block {key!r}", nearest(key, BLOCKS))
    for block in ("recipe", "model", "data", "trainer"):
        _mapping(tree.get(block), path, block)
    card = tree["recipe"]
    for key in CARD_KEYS:
        if card.get(key) in (None, ""):
            raise UserError(f"{path}: recipe.{key}: is missing", "fill it in; a card states " + ", ".join(CARD_KEYS))
    config = {key: tree[key] for key in BLOCKS[2:] if key in tree}
    config.setdefault("seed_everything", card["seed"])
    compare = _compare(tree["compare"], path) if tree.get("compare") is not None else None
    return Recipe(path.stem, path, card, _metric(card["metric"], path), config, compare)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})", "give a recipe in YAML") from None
    try:
        tree = yaml.load(text, Loader=RecipeLoader)  # noqa: S506  (a subclass of SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}" if mark else "somewhere"
        raise UserError(f"{path}: {place}: {error.problem}", "a recipe is plain YAML without tags") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({error})", "a recipe is plain YAML without tags") from None
    return _mapping(tree, path, "the file")


def _mapping(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        found = "nothing" if value is None else type(value).__name__
        raise UserError(
            f"{path}: {where}: expected a mapping, found {found}",
            "a recipe has the blocks recipe, model, data and trainer",
        )
    return value


def _metric(value: Any, path: Path) -> Metric:
    _mapping(value, path, "recipe.metric")
    direction = value.get("direction")
    if direction not in ("min", "max") or not value.get("name"):
        raise UserError(
            f"{path}: recipe.metric: expected a name and direction min or max, found {value!r}",
            "write metric: {name: mae, direction: min, label: MAE}",
        )
    return Metric(value["name"], direction, value.get("label", value["name"]), value.get("unit", ""))


def _compare(value: Any, path: Path) -> CompareBlock:
    _mapping(value, path, "compare")
    candidates = []
    for name, entry in _mapping(value.get("candidates"), path, "compare.candidates").items():
        where = f"compare.candidates.{name}"
        entry = {} if entry is None else _mapping(entry, path, where)
        known = {"family", "twin", "overrides", "class_path", "init_args"}
        unknown = set(entry) - known
        if unknown:
            raise UserError(
                f"{path}: {where}: unknown key {sorted(unknown)[0]!r}", nearest(sorted(unknown)[0], sorted(known))
            )
        if entry.get("family", "other") not in FAMILIES:
            raise UserError(f"{path}: {where}.family: unknown {entry['family']!r}", nearest(entry["family"], FAMILIES))
        candidates.append(CandidateSpec(name=name, **entry))
    names = {candidate.name for candidate in candidates}
    for candidate in candidates:
        if candidate.twin is not None and candidate.twin not in names:
            raise UserError(
                f"{path}: compare.candidates.{candidate.name}.twin: there is no candidate {candidate.twin!r}",
                nearest(candidate.twin, sorted(names)),
            )
    if not value.get("budget"):
        raise UserError(f"{path}: compare.budget: is missing", "write for example budget: 5epochs")
    return CompareBlock(
        budget=str(value["budget"]),
        candidates=tuple(candidates),
        sweeps=value.get("sweeps") or {},
        note=value.get("note", ""),
    )
