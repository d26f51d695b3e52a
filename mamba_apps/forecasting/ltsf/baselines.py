"""What every model of the benchmark has to beat, in float64: a linear map in closed form, the last value, the season.

Dimensions in names: B batch, L lookback, H horizon, C channels (variates).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.ltsf.data import LtsfData, Windows
from mamba_apps.forecasting.ltsf.panels import ltsf_panels
from mamba_apps.forecasting.ltsf.scores import WindowErrors
from mamba_apps.forecasting.panels import ForecastPanel
from mamba_apps.registry import check_option_names
from mamba_datasets.report import nearest

Forecast = Callable[[Tensor], Tensor]
_CHUNK = 256


def closed_form(data: LtsfData, *, ridge: float = 1e-4) -> tuple[Forecast, int]:
    """Return ridge regression from the past to the future of a window less its mean, one map for all variates.

    Args:
        data: The data; the map is solved from its training windows.
        ridge: The penalty, as a part of the number of windows times variates.

    Returns:
        The forecast of the past (B, L, C), and how many numbers it learned.
    """
    lookback, horizon = data.lookback, data.horizon
    gram_LL = torch.zeros(lookback, lookback, dtype=torch.float64)
    moment_LH = torch.zeros(lookback, horizon, dtype=torch.float64)
    for batch in _batches(data, "train"):
        mean_B1C = batch["past"].mean(1, keepdim=True)
        x_NL, y_NH = ((batch[part] - mean_B1C).transpose(1, 2).flatten(0, 1) for part in ("past", "future"))
        gram_LL += x_NL.T @ x_NL
        moment_LH += x_NL.T @ y_NH
    penalty = ridge * len(data.starts("train")) * data.channels
    weight_LH = torch.linalg.solve(gram_LL + penalty * torch.eye(lookback, dtype=torch.float64), moment_LH)

    def forecast(past_BLC: Tensor) -> Tensor:
        mean_B1C = past_BLC.mean(1, keepdim=True)
        return weight_LH.to(past_BLC.dtype).T @ (past_BLC - mean_B1C) + mean_B1C

    return forecast, weight_LH.numel()


def repeat_last(data: LtsfData) -> tuple[Forecast, int]:
    """Return the last value of each variate, repeated; arguments and result as in `closed_form`."""
    return lambda past_BLC: past_BLC[:, -1:].expand(-1, data.horizon, -1), 0


def seasonal_naive(data: LtsfData, *, season: int | None = None) -> tuple[Forecast, int]:
    """Return the values of a season ago; arguments and result as in `closed_form`.

    Args:
        data: The data.
        season: Steps of a season; None for the benchmark's usual one.

    Raises:
        UserError: The season is not known, or longer than the lookback.
    """
    season = data.series.known.season if season is None else season
    if season is None or not 1 <= season <= data.lookback:
        found = "not known" if season is None else f"{season} steps, the lookback {data.lookback}"
        raise UserError(f"{data.benchmark}: the season is {found}", "give a season from 1 step to the lookback")
    step_H = data.lookback - season + torch.arange(data.horizon) % season
    return lambda past_BLC: past_BLC[:, step_H], 0


BASELINES: dict[str, Callable[..., tuple[Forecast, int]]] = {
    "closed_form": closed_form,
    "repeat_last": repeat_last,
    "seasonal_naive": seasonal_naive,
}


class LtsfBaseline:
    """A baseline as a candidate of a comparison: fit, evaluate, plots.

    Args:
        name: "closed_form", "repeat_last" or "seasonal_naive".
        options: Its options, such as ``ridge`` or ``season``.

    Raises:
        UserError: There is no such baseline, or it has no such option.
    """

    def __init__(self, name: str, options: dict[str, Any] | None = None) -> None:
        if name not in BASELINES:
            raise UserError(f"unknown baseline {name!r}", nearest(name, list(BASELINES)))
        check_option_names(name, options or (), list(inspect.signature(BASELINES[name]).parameters)[1:])
        self.name, self.options = name, dict(options or {})
        self.parameters = 0
        self.samples_seen = 0

    def fit(self, data: LtsfData, budget: Any, seed: int) -> None:
        """Fit to the training windows; a closed form needs neither the budget nor the seed."""
        self._data = data
        self._forecast, self.parameters = BASELINES[self.name](data, **self.options)
        self.samples_seen = len(data.starts("train")) if self.parameters else 0

    def errors(self) -> WindowErrors:
        """Return the errors of all test windows."""
        found = WindowErrors(self._data.drop_last)
        for batch in _batches(self._data, "test"):
            found.update(batch["start"], self._forecast(batch["past"]), batch["future"])
        return found

    def evaluate(self) -> dict[str, float]:
        """Return mse and mae of the test part."""
        return {name: float(value) for name, value in self.errors().compute().items()}

    def plots(self) -> list[ForecastPanel]:
        """Return pictures of the forecasts of a few test windows."""
        return ltsf_panels(self._data, self.name, lambda batch: self._forecast(batch["past"]))


def _batches(data: LtsfData, part: str) -> Iterator[Windows]:
    for start_B in torch.tensor(data.starts(part)).split(_CHUNK):
        yield data.gather(start_B, torch.float64)
