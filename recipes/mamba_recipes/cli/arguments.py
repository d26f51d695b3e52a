"""Argument parsing shared by the commands: errors become `UserError`, and recipe options pass through."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from mamba_apps.errors import UserError
from mamba_recipes.settings import parse_overrides

RECIPE_OPTIONS = (
    "Any setting of the recipe can be given after its name, dotted: --data.root DIR --trainer.max_epochs 3 --model.lr "
    "1e-3. --debug shows the traceback of an error."
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the command's one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with."""
        remedy = f"see {self.prog} --help"
        if self.epilog == RECIPE_OPTIONS and "unrecognized arguments: --" in message:
            remedy = f"settings of the recipe are dotted, such as --data.root DIR or --model.lr 1e-3; {remedy}"
        elif message.startswith("unrecognized arguments: ") and not message.split()[2].startswith("-"):
            taken = " and one ".join(str(one.metavar or one.dest) for one in self._get_positional_actions())
            remedy = f"it takes one {taken}, a name with spaces in quotes; {remedy}" if taken else remedy
        raise UserError(f"{self.prog}: {message}", remedy)


def split_overrides(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse ``argv``; its dotted options, with their values, are settings of the recipe and not the parser's.

    They are taken out first: the parser would read the value of an option that it does not know as a positional word.
    """
    dotted: list[str] = []
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or "." not in name:
            rest.append(word)
            continue
        dotted.append(word)
        if not equals and words and not words[0].startswith("--"):
            dotted.append(words.pop(0))
    return parser.parse_args(rest), parse_overrides(dotted)


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value
