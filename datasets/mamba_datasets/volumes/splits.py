"""Folds of a cross-validation: sorted names, dealt out in turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.json_files import read_any_json


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


def read_folds(path: str | Path, names: Iterable[str], *, lacking: bool = False) -> list[tuple[list[str], list[str]]]:
    """Read folds that somebody else has dealt, such as nnU-Net's splits_final.json, so that patients stay together.

    Args:
        path: A JSON list of objects with the names to train on, ``train``, and those to validate on, ``val``.
        names: Of the cases. Those that a fold does not name are not in it.
        lacking: Whether the folds may name cases that are not there, which are passed over.

    Returns:
        As `folds` does, sorted.

    Raises:
        DataError: The file is none of folds, names a case that is not there, has one on both sides or none on one.
    """
    remedy = 'give a list such as nnU-Net\'s splits_final.json: [{"train": ["a", "b"], "val": ["c"]}]'
    content = read_any_json(path, remedy)
    if not isinstance(content, list) or not content:
        raise DataError(path, "file", "expected a list of folds", remedy)
    known, found = set(names), []
    for number, fold in enumerate(content):
        where = f"fold {number}"
        sides = [fold.get(side) if isinstance(fold, dict) else None for side in ("train", "val")]
        train, val = (set(side) if isinstance(side, list) and set(map(type, side)) <= {str} else None for side in sides)
        if train is None or val is None:
            raise DataError(path, where, "expected the names of cases under train and val", remedy)
        unknown = sorted((train | val) - known)
        if unknown and not lacking:
            raise DataError(path, where, f"there is no training case {unknown[0]!r}", "correct the name; see imagesTr")
        if train & val:
            raise DataError(path, where, f"{min(train & val)!r} is on both sides", "leave it on one")
        if not train & known or not val & known:
            raise DataError(path, where, "has no case on one side", "name cases under train and val")
        found.append((sorted(train & known), sorted(val & known)))
    return found
