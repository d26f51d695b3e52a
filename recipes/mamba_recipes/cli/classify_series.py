"""`mamba-apps classify` on series: a file that cannot be used makes the exit code 2, and no table."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from mamba_apps.errors import UserError
from mamba_recipes.cli.classified import as_json, header, table
from mamba_recipes.cli.errors import DONE


def run(arguments: Namespace, folder: Path) -> int:
    """Classify the series of a file, or of every file in a folder, with the model saved in ``folder``."""
    for name in ("every", "out", "embeddings"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is for sounds, and {folder} classifies series", "leave it out")

    from mamba_apps.series_classification import SeriesClassifier
    from mamba_datasets.series.cases import read_cases

    classifier = SeriesClassifier.load(folder)
    header(arguments.path, f"series[{classifier.mixer}]", classifier.parameters, classifier.classes)
    cases = read_cases(arguments.path, classifier.channels, classifier.variates)
    if cases.notes:
        print(f"read: {' · '.join(cases.notes)}", file=sys.stderr, flush=True)
    found = []
    for name, probability_K in zip(cases.names, classifier.predict_proba(cases.series), strict=True):
        likeliest = probability_K.argsort(kind="stable")[::-1][: arguments.top]
        found.append((name, [(classifier.classes[place], float(probability_K[place])) for place in likeliest]))
    if arguments.json:
        series = [{"series": name, "classes": as_json(classes)} for name, classes in found]
        print(json.dumps({"model": str(arguments.model), "series": series}, indent=1, ensure_ascii=False))
    else:
        print(table(found))
    return DONE
