"""Folds of a cross-validation: sorted names, dealt out in turn."""

from __future__ import annotations

from collections.abc import Iterable

from mamba_datasets.errors import DataError


def folds(names: Iterable[str], count: int = 5) -> list[tuple[list[str], list[str]]]:
    """Split names into training and validation, once for each fold.

    Args:
        names: Of the cases; their order does not matter.
        count: How many folds.

    Returns:
        For fold k: the names to train on, and those to validate on, whose place i in sorted order has i % count == k.

    Raises:
        DataError: There are fewer names than folds.
    """
    ordered = sorted(names)
    if len(ordered) < 2:
        found = f"expected at least 2 to hold one out, found {len(ordered)}"
        raise DataError("folds", "cases", found, "give more cases")
    if not 2 <= count <= len(ordered):
        found = f"expected 2 to {len(ordered)} folds for {len(ordered)} cases, found {count}"
        raise DataError("folds", "count", found, "give more cases, or choose fewer folds")
    return [
        (
            [name for place, name in enumerate(ordered) if place % count != fold],
            [name for place, name in enumerate(ordered) if place % count == fold],
        )
        for fold in range(count)
    ]
