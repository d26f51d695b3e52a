"""Prediction intervals: levels, the quantiles that bound them, and intervals from the errors of a validation part.

Dimensions in names: B batch (windows), S series, H horizon, V levels, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mamba_apps.errors import UserError

_ENOUGH = 30
# Windows of other errors that stand beside a series' own: fewer make narrow what one quiet stretch was easy for.
_BORROWED = 4


def checked_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Return levels in increasing order.

    Raises:
        UserError: If one is not a percentage from 1 to 100, or stands twice, or they are no sequence.
    """
    if not isinstance(levels, Sequence):
        raise UserError(f"levels is {levels!r}", "give a list, such as [80, 95]")
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 100:
            raise UserError(f"level {level!r} is no percentage", "give levels between 0 and 100, such as 80 and 95")
        if level < 1:
            raise UserError(f"level {level!r} is less than one per cent", f"give {100 * level:g} for {100 * level:g} %")
    if len(set(levels)) != len(levels):
        raise UserError(f"levels {list(levels)} repeat one", "give each level once")
    return tuple(sorted(levels))


def level_quantiles(levels: Sequence[float]) -> tuple[float, ...]:
    """Return the probabilities that bound the levels' intervals, with the median between, in increasing order."""
    tails = [(100 - level) / 200 for level in levels]
    return (*sorted(tails), 0.5, *sorted(1 - tail for tail in tails))


def quantile_levels(quantiles: Sequence[float] | None) -> tuple[float, ...]:
    """Return the levels whose ``level_quantiles`` are these, or none where they are no such."""
    lower = [q for q in quantiles or () if q < 0.5]
    levels = tuple(sorted(round(100 - 200 * q, 6) for q in lower))
    expected = level_quantiles(levels)
    same = len(expected) == len(quantiles or ()) and all(
        math.isclose(a, b, abs_tol=1e-6) for a, b in zip(expected, quantiles or (), strict=True)
    )
    return levels if same else ()


def level_names(levels: Sequence[float], name: str) -> list[str]:
    """Return a forecast's columns: its name, then "name-lo-80", "name-hi-80" for each level."""
    return [name, *(f"{name}-{side}-{level:g}" for level in levels for side in ("lo", "hi"))]


def from_quantiles(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantile forecasts (..., Q) of ``level_quantiles`` in the order of ``level_names``."""
    count, middle = 2 * len(levels) + 1, len(levels)
    # The widest level has the outermost pair.
    order = [middle, *(place for i in range(1, middle + 1) for place in (middle - i, middle + i))]
    if values.shape[-1] != count:
        raise UserError(f"{values.shape[-1]} quantiles do not bound {len(levels)} levels", "use the levels of the fit")
    return values[..., order]


def conformal_radius(error_BH: Tensor, seen_BH: Tensor, levels: Sequence[float]) -> Tensor:
    """Return how far from the forecast each level's interval reaches (V, H): quantiles of past absolute errors.

    The quantile has the finite-sample correction of split conformal prediction (rank ceil((n + 1) * level)); a step of
    the horizon with few errors of its own shares those of all steps.

    Args:
        error_BH: Errors of the validation windows.
        seen_BH: bool, whether the target was observed.
        levels: Percentages.

    Raises:
        UserError: If no target of the validation part was observed.
    """
    if not seen_BH.any():
        raise UserError("no target of the validation part was observed", "give more val_steps, or no levels")
    pooled = error_BH.abs()[seen_BH].sort().values
    rows = []
    for level in levels:
        row = []
        for h in range(error_BH.shape[1]):
            own = error_BH[:, h].abs()[seen_BH[:, h]].sort().values
            errors = own if len(own) >= _ENOUGH else pooled
            rank = min(math.ceil((len(errors) + 1) * level / 100), len(errors))
            row.append(errors[rank - 1])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def relative_reach(error_BH: Tensor, seen_BH: Tensor, series_B: Tensor, count: int) -> Tensor:
    """Return how large the absolute errors of each series are beside those of all (S,).

    A series of few errors is taken to be more like the others: each gets as many of theirs as four windows have.

    Args:
        error_BH: Errors of the validation windows.
        seen_BH: bool, whether the target was observed.
        series_B: The series of each window.
        count: How many series there are (S).
    """
    each_B2 = torch.stack([error_BH.abs().masked_fill(~seen_BH, 0.0).sum(1), seen_BH.sum(1).to(error_BH)], dim=1)
    sum_S, seen_S = error_BH.new_zeros(count, 2).index_add_(0, series_B, each_B2).unbind(1)
    mean, borrowed = sum_S.sum() / seen_S.sum(), _BORROWED * error_BH.shape[1]
    if not mean > 0:
        return torch.ones_like(sum_S)
    return (sum_S / mean + borrowed) / (seen_S + borrowed)


def around(point_BH: Tensor, radius_VH: Tensor, reach_B: Tensor) -> Tensor:
    """Return point forecasts with intervals around them (B, H, 1 + 2V), in the order of ``level_names``.

    Args:
        point_BH: The forecasts.
        radius_VH: How far each level's interval reaches.
        reach_B: What of it each forecast's do.
    """
    reach_B1 = reach_B[:, None]
    sides = [
        side for radius_H in radius_VH for side in (point_BH - reach_B1 * radius_H, point_BH + reach_B1 * radius_H)
    ]
    return torch.stack([point_BH, *sides], dim=-1)
