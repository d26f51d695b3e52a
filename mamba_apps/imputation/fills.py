"""Filling without learning: what a model has to beat.

Dimensions in names: T steps, C variates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mamba_datasets.series.fill import carry_forward


def last(values_TC: np.ndarray, season: int | None) -> np.ndarray:
    """Return the values with the last observed one carried on; the first one holds before it."""
    return carry_forward(values_TC)


def linear(values_TC: np.ndarray, season: int | None) -> np.ndarray:
    """Return the values with a straight line through each gap; at the ends the nearest observed value holds."""
    steps = np.arange(len(values_TC))
    filled_TC = values_TC.copy()
    for value_T in filled_TC.T:
        gaps = np.isnan(value_T)
        value_T[gaps] = np.interp(steps[gaps], steps[~gaps], value_T[~gaps])
    return filled_TC


def seasonal(values_TC: np.ndarray, season: int | None) -> np.ndarray:
    """Return the values filled by the mean at the same place of the season, and a straight line through what it leaves.

    A place that was never observed has the mean of all; without a season this is `linear`.
    """
    if season is None:
        return linear(values_TC, None)
    place_T = np.arange(len(values_TC)) % season
    profile_TC = np.empty_like(values_TC)
    for value_T, profile_T in zip(values_TC.T, profile_TC.T, strict=True):
        seen = ~np.isnan(value_T)
        count = np.bincount(place_T[seen], minlength=season)
        total = np.bincount(place_T[seen], weights=value_T[seen], minlength=season)
        mean = np.where(count > 0, total / np.maximum(count, 1), value_T[seen].mean())
        profile_T[:] = mean[place_T]
    return np.where(np.isnan(values_TC), profile_TC + linear(values_TC - profile_TC, None), values_TC)


FILLS: dict[str, Callable[[np.ndarray, int | None], np.ndarray]] = {
    "last": last,
    "linear": linear,
    "seasonal": seasonal,
}
