"""Values for missing steps, from the past of the same series only."""

from __future__ import annotations

import numpy as np


def carry_forward(values: np.ndarray) -> np.ndarray:
    """Fill missing values with the last one before them; those before the first value take that first value.

    Args:
        values: float (T, C) with NaN where a value is missing; a column must hold at least one value.

    Returns:
        A filled copy.
    """
    present = ~np.isnan(values)
    steps = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(present, steps, -1), axis=0)
    first = present.argmax(axis=0)
    return np.take_along_axis(values, np.where(last < 0, first[None, :], last), axis=0)


def fill_seasonal(values: np.ndarray, season: int | None) -> tuple[np.ndarray, int | None]:
    """Fill missing values with the value one season before, or the last one where there is no such step.

    A gap longer than a season repeats the last season before it.

    Args:
        values: float (T,) with NaN where a value is missing; the first is not missing.
        season: The season in steps; None fills with the last value throughout.

    Returns:
        A filled copy, and the first step that had no step one season before; None if all had one.
    """
    filled = values.copy()
    without = None
    for step in np.flatnonzero(np.isnan(values)):
        if season is not None and step >= season:
            filled[step] = filled[step - season]
        else:
            without = int(step) if without is None else without
            filled[step] = filled[step - 1]
    return filled, without
