"""`mamba-apps classify IMAGE|FOLDER --model DIR`: the classes of images, by a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_recipes.cli.arguments import Parser, positive
from mamba_recipes.cli.errors import DONE, WRONG_INPUT, one_line

if TYPE_CHECKING:
    from mamba_apps.vision.classification import ImageClassifier, Prediction


def make_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="mamba-apps classify",
        description="Print the likeliest classes of an image, or of every image in a folder and the folders below it.",
    )
    parser.add_argument("path", type=Path, metavar="IMAGE|FOLDER", help="what to classify")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a run's folder, or a saved model")
    parser.add_argument("--top", type=positive, default=3, metavar="K", help="so many classes of each image (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `mamba-apps classify` and return its exit code; an image that cannot be read makes it 2, and no table."""
    arguments = make_parser().parse_args(list(argv))

    from mamba_apps.training.chatter import quiet
    from mamba_apps.vision.classification import BadImagesError, ImageClassifier

    quiet()
    classifier = ImageClassifier.load(arguments.model)
    _header(classifier, arguments.path)
    try:
        found = classifier.predict(arguments.path, top=arguments.top)
    except BadImagesError as error:
        for problem in error.problems:
            print(f"mamba-apps: error: {one_line(problem)}", file=sys.stderr)
        return WRONG_INPUT
    print(
        json.dumps(_document(arguments.model, found), indent=1, ensure_ascii=False) if arguments.json else _table(found)
    )
    return DONE


def _header(classifier: ImageClassifier, path: Path) -> None:
    from mamba_recipes.setting import device_words, parameter_words

    count = sum(parameter.numel() for parameter in classifier.network.parameters())
    classes = f"{len(classifier.labels)} classes"
    words = [f"classify {path}", classifier.model, parameter_words(count), classes, device_words()]
    print(" · ".join(words), file=sys.stderr, flush=True)


def _document(model: Path, found: Sequence[Prediction]) -> dict[str, object]:
    images = [
        {
            "image": one.image,
            "classes": [{"label": label, "probability": probability} for label, probability in one.classes],
        }
        for one in found
    ]
    return {"model": str(model), "images": images}


def _table(found: Sequence[Prediction]) -> str:
    """Return a line an image: its path, then each class with its probability."""
    lines = [
        [
            one.image,
            *(f"{label} {probability:.3f}" for label, probability in zip(one.labels, one.probabilities, strict=True)),
        ]
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
