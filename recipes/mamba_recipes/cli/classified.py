"""What `mamba-apps classify` prints: a header line, and a line for each thing that was classified."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def header(path: Path, model: str, parameters: int, labels: Sequence[str]) -> None:
    """Write the header line to stderr: model, parameters, classes, device."""
    from mamba_recipes.setting import device_words, parameter_words

    words = [f"classify {path}", model, parameter_words(parameters), f"{len(labels)} classes", device_words()]
    print(" · ".join(words), file=sys.stderr, flush=True)


def table(found: Iterable[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Return a line for each: its path, then its classes with their probabilities."""
    lines = [[name, *(f"{label} {probability:.3f}" for label, probability in classes)] for name, classes in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_json(classes: Sequence[tuple[str, float]]) -> list[dict[str, object]]:
    """Return classes with their probabilities for a JSON document."""
    return [{"label": label, "probability": probability} for label, probability in classes]
