"""`mamba-apps classify PATH --model DIR`: the classes of images, sounds or series; the saved model says which."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.arguments import Parser, positive

# A model's domain -> the module whose run(arguments, folder) classifies with it.
_DOMAINS = {
    "image": "mamba_recipes.cli.classify_images",
    "audio": "mamba_recipes.cli.classify_sounds",
    "series": "mamba_recipes.cli.classify_series",
}


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps classify",
        description="Print the likeliest classes of an image, a sound or a file of series, or of every one in a folder "
        "and the folders below it; for a long sound, with --every, write what is heard when.",
    )
    parser.add_argument("path", type=Path, metavar="FILE|FOLDER", help="what to classify")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a run's folder, or a saved model")
    parser.add_argument("--top", type=positive, default=3, metavar="K", help="so many classes of each (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    sounds = parser.add_argument_group("sounds only")
    sounds.add_argument(
        "--every", metavar="TIME", help="write a timeline with a row for each 1s, 500ms, 2min: a CSV and a picture"
    )
    sounds.add_argument("--out", type=Path, metavar="FILE.csv", help="the timeline's file (NAME_timeline.csv)")
    sounds.add_argument(
        "--embeddings", type=Path, metavar="FILE.npz", help="write what the classifier sees of each: paths, embeddings"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps classify` and return its exit code."""
    arguments = make_parser().parse_args(list(argv))

    from mamba_apps.training.chatter import quiet
    from mamba_apps.training.saved import load_card, saved_folder

    quiet()
    folder = saved_folder(arguments.model)
    card = load_card(folder)
    if card.task != "classification":
        raise UserError(f"{folder} holds a model for {card.task}", "give one that was trained to classify")
    if card.domain not in _DOMAINS:
        raise UserError(
            f"{folder} classifies the domain {card.domain!r}", f"give a model of {' or '.join(sorted(_DOMAINS))}"
        )
    return int(importlib.import_module(_DOMAINS[card.domain]).run(arguments, folder))
