"""Pictures of forecasts for a report: the same windows for every candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mamba_apps.forecasting.data import WindowData

_PICTURES = 3
_PAST_HORIZONS = 2


@dataclass(frozen=True)
class ForecastPanel:
    """One picture with lines, as the comparison's report draws it.

    Args:
        title: What is shown; forecasts of one window have one title, whoever made them.
        x: Timestamps or whole numbers (T,).
        x_label: The horizontal axis's name.
        y_label: The vertical axis's name.
        lines: Label -> values (T,); NaN leaves a gap.
        bands: Label -> lower and upper values (T,), (T,).
        shared: Labels of lines that every candidate has in common.
    """

    title: str
    x: Sequence[Any]
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[float]]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    shared: tuple[str, ...] = ("observed",)


def forecast_panels(
    data: WindowData,
    label: str,
    forecast: Callable[[Mapping[str, Tensor]], Tensor],
    bands: tuple[int, int] | None = None,
) -> list[ForecastPanel]:
    """Draw the forecasts of a few windows spread over the test part.

    Args:
        data: The data; without a test part nothing is drawn.
        label: The name of the forecast's line.
        forecast: From a batch to forecasts in the data's unit, (B, H, 1) or (B, H, Q + 1), the point forecast first.
        bands: Which of the last dimension are the lower and upper edge of an interval to draw.
    """
    if not data.test_steps:
        return []
    windows = data.test
    # Whole horizons after the first: where that begins a day, so do the pictures.
    horizons = np.linspace(0, (len(windows) - 1) // data.horizon, _PICTURES + 2).round().astype(int)[1:-1]
    numbers: list[int] = list(dict.fromkeys((horizons * data.horizon).tolist()))
    values_BHK = forecast(windows.batch(numbers)).detach().cpu().double().numpy()
    past = min(_PAST_HORIZONS * data.horizon, data.lookback)
    original = data.series_set
    panels = []
    for number, values_HK in zip(numbers, values_BHK, strict=True):
        index = windows.horizon_index(number)
        one = original.series[int(windows.locate([number])[0][0])]
        origin = int(one.index.searchsorted(index[0]))
        shown = slice(origin - past, origin + data.horizon)
        before = np.full((past, values_HK.shape[1]), np.nan)
        columns = np.concatenate([before, values_HK])
        many = f"{one.id}: " if len(original) > 1 else ""
        panels.append(
            ForecastPanel(
                title=f"{many}forecast from {index[0]}",
                x=list(one.index[shown]),
                x_label=str(original.columns["time_col"]),
                y_label=str(original.columns["target_col"]),
                lines={
                    "observed": np.where(one.observed[shown], one.y[shown], np.nan).tolist(),
                    label: columns[:, 0].tolist(),
                },
                bands={} if bands is None else {label: (columns[:, bands[0]].tolist(), columns[:, bands[1]].tolist())},
            )
        )
    return panels
