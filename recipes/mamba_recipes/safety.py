"""What a recipe may name: a class path outside these prefixes is refused before anything is imported.

A recipe is data that people pass around, while a class path is code that will run. Three rules keep them apart: YAML is
read with a safe loader, every ``class_path`` is checked here before the parser sees it, and the parser itself refuses
to import any other value (a callable, a type, a nested file's class path) outside the same list, wherever it leads to
after the import.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError

ALLOWED_PREFIXES = (
    "mamba_apps",
    "mamba_datasets",
    "mamba_recipes",
    "torch.optim",
    "torch.nn",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)


def is_allowed(import_path: str) -> bool:
    """Tell whether ``import_path`` lies under one of the allowed prefixes."""
    return any(import_path.startswith(prefix + ".") for prefix in ALLOWED_PREFIXES)


def check_class_paths(tree: Any, source: str | Path) -> None:
    """Refuse every class path in ``tree`` that lies outside the allowed prefixes, importing nothing.

    Args:
        tree: A recipe as plain dictionaries, lists and values.
        source: The file (or "the command line") that the tree came from, for the error.

    Raises:
        UserError: Naming the file, the key path, the class path and the remedy.
    """
    for key, value in _class_paths(tree, ()):
        place = ".".join(key)
        if not isinstance(value, str):
            raise UserError(f"{source}: {place}: a class path must be text, found {value!r}", "write module.ClassName")
        if not is_allowed(value):
            raise UserError(
                f"{source}: {place}: {value!r} is outside what a recipe may name ({', '.join(ALLOWED_PREFIXES)}) and "
                "was not imported",
                "use a class under one of these, or build the model in Python if you trust this code",
            )


def guard_parser() -> None:
    """Make jsonargparse refuse, for this process, to import any value outside the allowed prefixes."""
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=list(ALLOWED_PREFIXES),
        instantiate_subclass_spec_in_any=False,
    )


def _class_paths(tree: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            inner = (*key, str(name))
            # The parser also takes `model: module.Class` for `model: {class_path: module.Class}`.
            if name == "class_path" or (len(inner) == 1 and name in ("model", "data") and isinstance(value, str)):
                yield inner, value
            else:
                yield from _class_paths(value, inner)
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _class_paths(value, (*key, str(position)))
