"""`mamba-apps classify` on images: an image that cannot be read makes the exit code 2, and no table."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.classified import as_json, header, table
from mamba_recipes.cli.errors import DONE, WRONG_INPUT, one_line


def run(arguments: Namespace, folder: Path) -> int:
    """Classify an image or a folder of them with the model saved in ``folder``."""
    for name in ("every", "out", "embeddings"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is for sounds, and {folder} classifies images", "leave it out")

    from mamba_apps.vision.classification import BadImagesError, ImageClassifier

    classifier = ImageClassifier.load(folder)
    count = sum(parameter.numel() for parameter in classifier.network.parameters())
    header(arguments.path, classifier.model, count, classifier.labels)
    try:
        found = classifier.predict(arguments.path, top=arguments.top)
    except BadImagesError as error:
        for problem in error.problems:
            print(f"mamba-apps: error: {one_line(problem)}", file=sys.stderr)
        return WRONG_INPUT
    if arguments.json:
        images = [{"image": one.image, "classes": as_json(one.classes)} for one in found]
        print(json.dumps({"model": str(arguments.model), "images": images}, indent=1, ensure_ascii=False))
    else:
        print(table((one.image, one.classes) for one in found))
    return DONE
