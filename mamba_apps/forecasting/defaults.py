"""What a forecaster does where it is not told: lookback, validation part, seasons, training budget.

Every rule is arithmetic on the frequency and the lengths, so that equal data gives equal settings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mamba_apps.errors import UserError
from mamba_datasets.series import SeriesSet

_DAYS_A_WEEK = 7
_LOOKBACK_SEASONS = 4
_WITHOUT_SEASON = 64


def season_of(series_set: SeriesSet) -> int | None:
    """Return the usual season in steps: a day for sub-daily data, a week for days, a year for longer steps."""
    return series_set.frequency.season


def long_season_of(series_set: SeriesSet) -> int | None:
    """Return the longest season worth looking back for: a week for sub-daily data, else the usual one."""
    season = season_of(series_set)
    return season * _DAYS_A_WEEK if season is not None and series_set.frequency.kind == "tick" else season


def least_steps(lookback: int | None, horizon: int, *, padded: bool) -> int:
    """Return the steps of the shortest series that can be learned from; it may need more to be validated on."""
    return (1 if padded else lookback or 1) + horizon


def default_val_steps(series_set: SeriesSet, horizon: int) -> int:
    """Return the steps of each series held back for validation: a tenth of the shortest series, at least a horizon."""
    return max(horizon, int(series_set.lengths.min()) // 10)


def default_lookback(series_set: SeriesSet, horizon: int, val_steps: int, *, padded: bool = False) -> int:
    """Return how far back to look: four long seasons, no more than leaves as many training windows as steps.

    Args:
        series_set: The series.
        horizon: Steps to forecast.
        val_steps: Steps of each series held back for validation.
        padded: Whether short series are led in by unobserved steps: the median series then decides, not the shortest.

    Raises:
        UserError: If a series is too short to train on at all.
    """
    shortest = int(series_set.lengths.min())
    room = shortest - val_steps - horizon
    if room < 1:
        name = series_set.ids[int(series_set.lengths.argmin())]
        fewer = ", hold fewer back (val_steps)" if val_steps > horizon else ""
        raise UserError(
            f"{series_set.source}: series {name!r} has {shortest} steps, too few to learn forecasts of {horizon} from "
            f"with {val_steps} held back",
            f"give a shorter horizon{fewer}, or leave the series out",
        )
    room = int(np.median(series_set.lengths)) - val_steps - horizon if padded else room
    season, week = season_of(series_set), long_season_of(series_set)
    wanted = max(2 * horizon, _LOOKBACK_SEASONS * week if week else _WITHOUT_SEASON)
    found = min(wanted, max(room // 2, 1))
    for whole in (week, season):
        if whole and found >= whole:
            return found - found % whole
    return found


def default_options(model: str, series_set: SeriesSet, lookback: int) -> dict[str, Any]:
    """Return options that follow the frequency: a patch is a season, and so is the season of a seasonal baseline.

    Whoever forecasts wants `patch` to have a closed form beside it; whoever compares mixers does not.
    """
    season = season_of(series_set)
    if model in ("patch", "anchor"):
        patch = season or 16
        found = {"patch": min(patch if patch <= 96 else 48, lookback)}
        return found if model == "anchor" else {**found, "closed_form": True}
    if model in ("seasonal_naive", "seasonal_mean"):
        return {"season": min(season or 1, lookback)}
    return {}


def default_max_steps(windows: int, batch_size: int) -> int:
    """Return the training budget in steps: thirty passes over the windows, from 200 to 1,000 steps."""
    return min(1000, max(200, 30 * -(-windows // batch_size)))
