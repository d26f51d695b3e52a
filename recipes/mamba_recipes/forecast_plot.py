"""A picture of forecasts: the end of each series, what comes, and the intervals around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mamba_datasets.series import Table

_MOST_SERIES = 6
_PAST_HORIZONS = 4


def draw(
    source: Path | Table, reading: Mapping[str, Any], forecast: pd.DataFrame, name: str, levels: Sequence[float]
) -> Figure:
    """Draw the forecasts of the first series of a file.

    Args:
        source: The file that was forecast, or its table.
        reading: How it is read, as `read_series` takes it.
        forecast: What `Forecaster.predict` returned.
        name: The forecast's column.
        levels: Its intervals, in per cent.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    from mamba_datasets.series import read_series

    past = read_series(source, **reading)
    id_col, time_col = (str(column) for column in forecast.columns[:2])
    ids = list(dict.fromkeys(forecast[id_col]))[:_MOST_SERIES]
    figure = Figure(figsize=(9, 2.8 * len(ids)), layout="constrained")
    axes = figure.subplots(len(ids), 1, squeeze=False)[:, 0]
    for axis, one in zip(axes, ids, strict=True):
        rows = forecast[forecast[id_col] == one]
        series = next(series for series in past.series if str(series.id) == str(one))
        shown = min(len(series), _PAST_HORIZONS * len(rows))
        observed = pd.Series(series.y[-shown:]).where(series.observed[-shown:])
        axis.plot(series.index[-shown:], observed.to_numpy(), color="0.25", linewidth=1.4, label="observed")
        for place, level in enumerate(sorted(levels, reverse=True)):
            low, high = rows[f"{name}-lo-{level:g}"], rows[f"{name}-hi-{level:g}"]
            shade: dict[str, Any] = {"color": "#0b8a6f", "alpha": min(0.16 * (1 + place), 0.6), "linewidth": 0}
            axis.fill_between(rows[time_col], low, high, label=f"{level:g} %", **shade)
        axis.plot(rows[time_col], rows[name], color="#0b8a6f", linewidth=1.8, label=name)
        axis.set_title(str(one), loc="left", fontsize=10, parse_math=False)  # a name may hold $
        axis.grid(visible=True, color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        if isinstance(series.index, pd.DatetimeIndex):
            dates = AutoDateLocator(tz=series.index.tz)
            axis.xaxis.set_major_locator(dates)
            axis.xaxis.set_major_formatter(ConciseDateFormatter(dates, tz=series.index.tz))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=9, ncols=3 + len(levels))
    return figure
