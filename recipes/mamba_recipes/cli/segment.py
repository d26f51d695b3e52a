"""`mamba-apps segment INPUT --model DIR`: a mask for each picture or volume; the saved model says what it segments."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.arguments import Parser

# A model's domain -> the module whose run(arguments, folders) segments with it, or with several as an ensemble.
_DOMAINS = {"image": "mamba_recipes.cli.segment_images", "volume": "mamba_recipes.cli.segment_volumes"}


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps segment",
        description="Write a mask for a file, or for each file of a folder, whose values are the numbers of the "
        "model's classes: a PNG of an image's size, or a volume on the grid of the one that was given.",
    )
    parser.add_argument("input", type=Path, metavar="FILE|DIR", help="an image or volume, or a folder of them")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        action="append",
        metavar="DIR",
        help="a run's folder, or a saved model; for volumes, give it again for each fold of an ensemble",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="the mask, or for a folder, their folder (NAME_mask.*, NAME_masks)"
    )
    parser.add_argument("--overlay", action="store_true", help="images: also write the mask over the image")
    parser.add_argument("--probabilities", action="store_true", help="volumes: also write NAME_probabilities.npy")
    parser.add_argument("--no-mirror", action="store_true", help="volumes: 8 times as fast, and a little worse")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps segment` and return its exit code."""
    arguments = make_parser().parse_args(list(argv))
    if not arguments.input.exists():
        raise UserError(f"{arguments.input}: there is no such file or folder", "check the path")

    from mamba_apps.training.saved import load_card, saved_folder

    folders = [saved_folder(model) for model in arguments.model]
    domains = set()
    for folder in folders:
        card = load_card(folder)
        if card.task != "segmentation":
            raise UserError(f"{folder} holds a model for {card.task}", "give one that was trained to segment")
        if card.domain not in _DOMAINS:
            raise UserError(
                f"{folder} segments the domain {card.domain!r}", f"give a model of {' or '.join(sorted(_DOMAINS))}"
            )
        domains.add(card.domain)
    if len(domains) > 1:
        raise UserError(f"the models are of {' and '.join(sorted(domains))}", "give models of one kind")
    return int(importlib.import_module(_DOMAINS[domains.pop()]).run(arguments, folders))
