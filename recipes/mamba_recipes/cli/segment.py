"""`mamba-apps segment INPUT --model DIR`: a mask for each picture; the saved model says what it segments."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.arguments import Parser

# A model's domain -> the module whose run(arguments, folder) segments with it.
_DOMAINS = {"image": "mamba_recipes.cli.segment_images"}


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps segment",
        description="Write a mask of the input's size for a file, or for each file of a folder: PNG masks, whose "
        "values are the numbers of the model's classes, for images.",
    )
    parser.add_argument("input", type=Path, metavar="FILE|DIR", help="an image, or a folder of them")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a run's folder, or a saved model")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="the mask, or for a folder, their folder (NAME_mask.png, NAME_masks)"
    )
    parser.add_argument("--overlay", action="store_true", help="also write NAME_overlay.png, the mask over the image")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps segment` and return its exit code."""
    arguments = make_parser().parse_args(list(argv))
    if not arguments.input.exists():
        raise UserError(f"{arguments.input}: there is no such file or folder", "check the path")

    from mamba_apps.training.saved import load_card
    from mamba_recipes.runs import MODEL_NAME

    inner = arguments.model / MODEL_NAME
    folder = inner if inner.is_dir() else arguments.model
    card = load_card(folder)
    if card.task != "segmentation":
        raise UserError(f"{folder} holds a model for {card.task}", "give one that was trained to segment")
    if card.domain not in _DOMAINS:
        raise UserError(
            f"{folder} segments the domain {card.domain!r}", f"give a model of {' or '.join(sorted(_DOMAINS))}"
        )
    return int(importlib.import_module(_DOMAINS[card.domain]).run(arguments, folder))
