"""`mamba-apps recipes` and `mamba-apps models`: what there is to run, and with what."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from mamba_recipes import recipe as recipes
from mamba_recipes.cli.arguments import Parser
from mamba_recipes.cli.errors import DONE

_CELL = 56  # what a recipe's file says at greater length


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps recipes` or `mamba-apps models`; the first word says which."""
    return _recipes(argv[1:]) if argv[0] == "recipes" else _models(argv[1:])


def _recipes(argv: Sequence[str]) -> int:
    parser = Parser(prog="mamba-apps recipes", description="List the recipes, or print one.")
    parser.add_argument("recipe", nargs="?", metavar="NAME|PATH", help="print this recipe's file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    if arguments.recipe is not None:
        one = recipes.load(arguments.recipe)
        print(json.dumps(_card(one), indent=1) if arguments.json else one.path.read_text(encoding="utf-8").rstrip())
        return DONE
    found = [recipes.load(str(path)) for path in recipes.shipped().values()]
    if arguments.json:
        print(json.dumps([_card(one) for one in found], indent=1))
        return DONE
    rows = [
        (one.name, one.card["domain"], *map(_short, (one.card["title"], one.card["time"])), _yes(bool(one.compare)))
        for one in found
    ]
    _table(("recipe", "domain", "what", "time", "compares"), rows)
    print("mamba-apps recipes NAME prints one; mamba-apps compare NAME or mamba-apps fit NAME runs it", file=sys.stderr)
    return DONE


def _short(text: str) -> str:
    return textwrap.shorten(text, _CELL, placeholder=" …")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _card(one: recipes.Recipe) -> dict[str, Any]:
    candidates = [spec.name for spec in one.compare.candidates] if one.compare else []
    return {"name": one.name, "path": str(one.path), **one.card, "candidates": candidates}


def _models(argv: Sequence[str]) -> int:
    parser = Parser(prog="mamba-apps models", description="List the models, their size and what they take.")
    parser.add_argument("name", nargs="?", metavar="DOMAIN|MODEL", help="only this domain, or one model's options")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)

    from mamba_recipes.catalog import listing

    found = listing(arguments.name)
    if arguments.json:
        print(json.dumps(found, indent=1, default=str))
        return DONE
    rows = [
        (m["model"], m["domain"], "-" if m["parameters"] is None else f"{m['parameters']:,}", m["takes"]) for m in found
    ]
    _table(("model", "domain", "parameters", "takes"), rows)
    for one in found:
        if one["model"] == arguments.name:
            print(f"\n{one['domain']}: {one['summary']}\n")
            _table(("option", "default"), [(key, _default(value)) for key, value in one["options"].items()])
    for sizes in dict.fromkeys((m["domain"], m["at"]) for m in found):
        print(f"parameters of {sizes[0]} at {sizes[1]}", file=sys.stderr)
    return DONE


def _default(value: Any) -> str:
    return "needed" if value is inspect.Parameter.empty else str(value)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print left-aligned columns."""
    lines = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
