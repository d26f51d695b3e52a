"""Pictures of a benchmark's forecasts: the last variate of a few test windows, the same for every candidate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mamba_apps.forecasting.ltsf.data import LtsfData, Windows
from mamba_apps.forecasting.panels import ForecastPanel

_PICTURES = 3


def ltsf_panels(
    data: LtsfData, label: str, forecast: Callable[[Windows], Tensor], device: torch.device | str = "cpu"
) -> list[ForecastPanel]:
    """Draw forecasts of windows spread over the test part, at the benchmark's scale.

    Args:
        data: The data.
        label: The name of the forecast's line.
        forecast: From a batch of windows to forecasts (B, H, C).
        device: Where it computes.
    """
    starts = data.starts("test")
    numbers = np.linspace(0, len(starts) - 1, _PICTURES + 2).round().astype(int)[1:-1]
    batch = data.gather(torch.tensor([starts[number] for number in numbers], device=device))
    last_BH = forecast(batch)[..., -1].double().cpu()
    series, past = data.series, min(data.lookback, 2 * data.horizon)
    panels = []
    for start, last_H in zip(batch["start"].tolist(), last_BH, strict=True):
        origin = start + data.lookback
        shown = slice(origin - past, origin + data.horizon)
        index = np.arange(len(series.values)) if series.index is None else series.index
        panels.append(
            ForecastPanel(
                title=f"{series.columns[-1]}: forecast from {index[origin]}",
                x=list(index[shown]),
                x_label="row" if series.index is None else "date",
                y_label=f"{series.columns[-1]}, standardised",
                lines={"observed": series.scaled[shown, -1].tolist(), label: [float("nan")] * past + last_H.tolist()},
            )
        )
    return panels
