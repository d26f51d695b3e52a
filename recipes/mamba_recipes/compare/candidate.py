"""What a comparison asks of a candidate, and the pictures that it may hand back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mamba_recipes.compare.budget import Budget


@runtime_checkable
class Candidate(Protocol):
    """Something that learns from a recipe's data within a budget and is measured on its test part.

    A candidate may also have ``rehearse(data, seed)``, called first and measured by nobody, and after ``fit``:
    ``parameters`` (how many numbers it learned), ``samples_seen`` (training samples that its fit read),
    ``train_seconds`` (where it knows better than the clock around ``fit``) and ``step_seconds`` (the part of them that
    steps took).
    """

    def fit(self, data: Any, budget: Budget, seed: int) -> None:
        """Learn from the recipe's ``data``, within ``budget``, all randomness drawn from ``seed``."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics on the test part of the data that ``fit`` was given."""

    def plots(self) -> Sequence[Any]:
        """Return panels (anything with the attributes of `Panel`); may be empty."""


@dataclass(frozen=True)
class Panel:
    """One picture with lines; the report draws the panels of one title from all candidates over each other.

    Args:
        title: What is shown; candidates that show the same thing give it the same title.
        x: Positions along the horizontal axis (T,): numbers or timestamps (ISO text or datetime64).
        x_label: The horizontal axis's name.
        y_label: The vertical axis's name, with its unit.
        lines: Label -> values (T,); NaN leaves a gap.
        bands: Label -> lower and upper values (T,), (T,).
        shared: Labels of lines that every candidate has in common; they are drawn once.
    """

    title: str
    x: Sequence[Any]
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[float]]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    shared: Sequence[str] = ("observed",)

    @classmethod
    def of(cls, other: Any) -> Panel:
        """Return ``other``, anything with a panel's attributes, as a panel of plain lists."""
        return cls(
            title=str(other.title),
            x=_plain_axis(other.x),
            x_label=str(other.x_label),
            y_label=str(other.y_label),
            lines={str(label): _plain(values) for label, values in other.lines.items()},
            bands={str(label): (_plain(low), _plain(high)) for label, (low, high) in dict(other.bands).items()},
            shared=tuple(other.shared),
        )


def _plain(values: Any) -> list[float]:
    return [float(value) for value in np.asarray(values, dtype=float)]


def _plain_axis(values: Any) -> list[Any]:
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.number):
        return [float(value) for value in array]
    return [str(np.datetime64(value, "s")) for value in array]
