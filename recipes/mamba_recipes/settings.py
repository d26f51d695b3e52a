"""Dotted settings over a recipe's tree: `--trainer.max_epochs 3`, a candidate's overrides, a sweep's values."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mamba_apps.errors import UserError


class RecipeLoader(yaml.SafeLoader):
    """A safe YAML loader that also reads 1e-3 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing duplicate keys (the last would silently win)."""
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_value(text: str) -> Any:
    """Return the value that ``text`` means on a command line: a number, true, null, a list, or the text itself."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # noqa: S506  (a subclass of SafeLoader)
    except yaml.YAMLError:
        return text


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn ``--data.root X --trainer.max_epochs=3`` into ``{"data.root": "X", "trainer.max_epochs": 3}``.

    Raises:
        UserError: If an option has no value.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        key, equals, text = rest.pop(0).removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"option --{key} has no value", f"write --{key} VALUE or --{key}=VALUE")
            text = rest.pop(0)
        overrides[key] = parse_value(text)
    return overrides


def apply_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``tree`` with the dotted ``overrides`` set.

    A key that passes through a class (a mapping with ``class_path``) may leave out ``init_args``: ``model.lr`` sets
    ``model.init_args.lr``. A new ``class_path`` drops the former class's arguments.

    Raises:
        UserError: If a key passes through a value that is no mapping.
    """
    result = copy.deepcopy(dict(tree))
    for key, value in overrides.items():
        _set(result, key, copy.deepcopy(value))
    return result


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key (``init_args`` may be left out), or None where there is none."""
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node[name] if name in node else node.get("init_args", {}).get(name)
    return node


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    names = key.split(".")
    if not all(names):
        raise UserError(f"the key {key!r} has an empty part", "write a dotted key like trainer.max_epochs")
    node = tree
    for place, name in enumerate(names):
        if "class_path" in node and name not in ("class_path", "init_args", "dict_kwargs"):
            node = node.setdefault("init_args", {})
        if place == len(names) - 1:
            if name == "class_path" and node.get("class_path") != value:
                node.pop("init_args", None)
            node[name] = value
            return
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise UserError(
                f"the key {key!r} passes through {'.'.join(names[: place + 1])!r}, which is {node!r}",
                "name a setting that the recipe has",
            )
