"""The learning curve of a training, as a comparison's report draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CurvePanel:
    """One picture with lines; a comparison draws panels of one title over each other.

    Args:
        title: What is shown.
        x: Positions along the horizontal axis (T,).
        x_label: What they are.
        y_label: What the lines are, with its unit.
        lines: Label -> values (T,).
        bands: None here.
        shared: None here.
    """

    title: str
    x: Sequence[float]
    x_label: str
    y_label: str
    lines: dict[str, Sequence[float]]
    bands: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    shared: Sequence[str] = ()


def learning_curve(label: str, points: Sequence[tuple[float, float]], score: str = "top-1, %") -> list[CurvePanel]:
    """Return a picture of a score on the validation part over training, if there are two points of it.

    Args:
        label: The model.
        points: (optimiser steps, score).
        score: What the score is, with its unit.
    """
    if len(points) < 2:
        return []
    steps, scores = zip(*points, strict=True)
    return [CurvePanel("Learning curve", steps, "optimiser steps", f"validation {score}", {label: scores})]
