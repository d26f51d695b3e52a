"""Scores of forecasts that have come true: errors, and how often and how wide intervals cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def forecast_scores(
    forecasts: pd.DataFrame,
    name: str,
    *,
    target_col: str = "y",
    levels: Sequence[float] = (),
    by: str | Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Score the forecasts of `Forecaster.cross_validation` or `predict_insample`; steps not observed are left out.

    Args:
        forecasts: Their frame.
        name: The forecast's column.
        target_col: The column of what was observed.
        levels: The intervals to score.
        by: A column, or a value for each row, to score apart by; None scores all at once.

    Returns:
        One row, or one a value of ``by``: "steps", "mae", "rmse", "wape" (the mean absolute error as a part of the mean
        absolute target), and for each level "cover-80" (the part of the targets inside the interval) and "width-80"
        (its mean width). NaN where nothing was observed.
    """
    import pandas as pd

    y = forecasts[target_col].to_numpy(dtype=np.float64)
    seen = ~np.isnan(y)
    error = forecasts[name].to_numpy(dtype=np.float64) - y
    columns = {"mae": np.abs(error), "squared": error**2, "size": np.where(seen, np.abs(y), np.nan)}
    for level in levels:
        low, high = (forecasts[f"{name}-{side}-{level:g}"].to_numpy() for side in ("lo", "hi"))
        columns[f"cover-{level:g}"] = np.where(seen, (y >= low) & (y <= high), np.nan)
        columns[f"width-{level:g}"] = np.where(seen, high - low, np.nan)
    values = pd.DataFrame(columns)
    key = np.zeros(len(values), dtype=np.int64) if by is None else by
    key = forecasts[key].to_numpy() if isinstance(key, str) else np.asarray(key)
    groups = values.groupby(key, sort=False)
    found = groups.mean()
    found.insert(0, "steps", groups["mae"].count())
    found["squared"] = np.sqrt(found["squared"])
    found["size"] = found["mae"] / found["size"].where(found["size"] > 0)
    found = found.rename(columns={"squared": "rmse", "size": "wape"})
    return found.reset_index(drop=True) if by is None else found.rename_axis(by if isinstance(by, str) else "by")
