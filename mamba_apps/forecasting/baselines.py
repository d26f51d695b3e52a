"""Forecasters without an optimiser: last value, seasonal naive, mean of the last seasons, ridge in closed form.

They read the same scaled windows as the models and are saved the same way, so that everything that scores, draws or
saves a forecaster takes either.

Dimensions in names: B batch (windows), L lookback, H horizon, K seasons in the lookback, S season, D columns of the
regression.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.data import WindowData
from mamba_apps.forecasting.losses import MaskedErrors
from mamba_apps.forecasting.models import Batch, ForecastModel, Sizes
from mamba_apps.forecasting.models.base import interpolated, masked_mean
from mamba_apps.forecasting.panels import ForecastPanel, forecast_panels
from mamba_apps.registry import check_option_names
from mamba_datasets.report import nearest
from mamba_datasets.series import WindowDataset

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_CHUNK = 1024


class Baseline(ForecastModel):
    """A forecaster fitted without gradients."""

    covariates = frozenset({"past", "future", "static"})

    ignored: ClassVar[frozenset[str]] = frozenset()
    """The kinds of covariates that it is given and does not read."""

    @abstractmethod
    def fit(self, data: WindowData) -> None:
        """Take what the forecaster needs from the training windows, and its options' choice from the validation."""

    @property
    def learned(self) -> int:
        """How many numbers it learned."""
        return 0


class SeasonalMean(Baseline):
    """The mean of the last seasons at the same place, hours that were not observed left out.

    Where none of them was observed, the last observed value at that place in the lookback stands in, and the mean of
    the lookback where there is none.

    Args:
        sizes: The shape of the problem; covariates are not read.
        season: Steps of a season (S), at most the lookback.
        n: Number of seasons.

    Raises:
        UserError: If the lookback is shorter than a season, or n is below 1.
    """

    ignored = frozenset({"past", "future", "static"})

    def __init__(self, sizes: Sizes, *, season: int, n: int = 4) -> None:
        super().__init__(sizes)
        if not 1 <= season <= sizes.lookback:
            raise UserError(
                f"a season of {season} steps does not fit a lookback of {sizes.lookback}",
                "give a season from 1 step to the lookback, or a longer lookback",
            )
        if n < 1:
            raise UserError(f"the mean is over n={n} seasons", "give at least 1")
        self.season, self.n = season, n

    def fit(self, data: WindowData) -> None:
        """There is nothing to take."""

    def forward(self, batch: Batch) -> Tensor:
        """Forecast; see `ForecastModel.forward`."""
        seasons = self.sizes.lookback // self.season
        used = seasons * self.season
        y_BL, observed_BL = batch["past_y"][..., 0], batch["past_observed"][..., 0]
        # Latest season first: (B, K, S).
        y_BKS = y_BL[:, -used:].unflatten(1, (seasons, self.season)).flip(1)
        seen_BKS = observed_BL[:, -used:].unflatten(1, (seasons, self.season)).flip(1)
        recent_BKS = seen_BKS & (torch.arange(seasons, device=y_BL.device) < self.n)[:, None]
        earlier_BKS = seen_BKS & (seen_BKS.cumsum(1) == 1)
        some_B1S = recent_BKS.any(1, keepdim=True)
        mean_BS = masked_mean(y_BKS, torch.where(some_B1S, recent_BKS, earlier_BKS), dim=1)[:, 0]
        window_B1 = masked_mean(y_BL, observed_BL, dim=1)
        mean_BS = torch.where(seen_BKS.any(1), mean_BS, window_B1)
        step_H = torch.arange(self.sizes.horizon, device=y_BL.device) % self.season
        return mean_BS[:, step_H, None]


class SeasonalNaive(SeasonalMean):
    """The last observed value at the same place of a season.

    Args:
        sizes: The shape of the problem; covariates are not read.
        season: Steps of a season, at most the lookback.

    Raises:
        UserError: If the lookback is shorter than a season.
    """

    def __init__(self, sizes: Sizes, *, season: int) -> None:
        super().__init__(sizes, season=season, n=1)


class RepeatLast(SeasonalNaive):
    """The last observed value, again and again.

    Args:
        sizes: The shape of the problem; covariates are not read.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, season=1)


class Ridge(Baseline):
    """A linear map of the window and the covariates known ahead, fitted in closed form.

    The window and the target are centred by the window's mean, which is a column of its own beside the future
    covariates, the static ones and a constant. The penalty is the given one, or of a few the one with the lowest
    validation MAE. Steps of the past that were not observed are interpolated; windows with an unobserved target are
    left out of the fit.

    Args:
        sizes: The shape of the problem; past covariates are not read.
        ridge: The penalty, as a part of the number of windows; None chooses it.
        max_windows: At most so many training windows are read, evenly spread.
    """

    ignored = frozenset({"past"})

    def __init__(self, sizes: Sizes, *, ridge: float | None = None, max_windows: int = 50_000) -> None:
        super().__init__(sizes)
        if ridge is not None and not ridge > 0:
            raise UserError(f"ridge is {ridge}", "give a positive penalty, or leave it out")
        self.ridge, self.max_windows = ridge, max_windows
        columns = sizes.lookback + sizes.horizon * sizes.n_future + sizes.n_static + 2
        self.weight_DH: Tensor
        self.register_buffer("weight_DH", torch.zeros(columns, sizes.horizon))

    @property
    def learned(self) -> int:
        """How many numbers it learned."""
        return self.weight_DH.numel()

    def fit(self, data: WindowData) -> None:
        """Solve for the weights; see `Baseline.fit`."""
        columns = len(self.weight_DH)
        gram_DD = torch.zeros(columns, columns, dtype=torch.float64)
        moment_DH = torch.zeros(columns, self.sizes.horizon, dtype=torch.float64)
        windows = 0
        for batch in _batches(data.train, self.max_windows):
            x_BD, mean_B1 = self._columns(batch)
            whole_B = batch["future_observed"].all(dim=1)[:, 0]
            x_BD, y_BH = x_BD[whole_B].double(), (batch["future_y"][..., 0] - mean_B1)[whole_B].double()
            gram_DD += x_BD.T @ x_BD
            moment_DH += x_BD.T @ y_BH
            windows += len(x_BD)
        if not windows:
            raise UserError("ridge found no training window whose targets were all observed", "shorten the horizon")
        best = float("inf")
        choices = (self.ridge,) if self.ridge is not None else _RIDGES if data.val_steps else _RIDGES[2:3]
        for ridge in choices:
            penalty_D = torch.full((columns,), ridge * windows, dtype=torch.float64)
            penalty_D[-1] = 1e-9 * windows  # the constant is free
            weight_DH = torch.linalg.solve(gram_DD + penalty_D.diag(), moment_DH).float()
            score = _mae(self._with(weight_DH), data) if len(choices) > 1 else 0.0
            if score < best:
                best, chosen_DH = score, weight_DH
        self._with(chosen_DH)

    def forward(self, batch: Batch) -> Tensor:
        """Forecast; see `ForecastModel.forward`."""
        x_BD, mean_B1 = self._columns(batch)
        return (x_BD @ self.weight_DH + mean_B1)[..., None]

    def _with(self, weight_DH: Tensor) -> Ridge:
        self.weight_DH.copy_(weight_DH)
        return self

    def _columns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the regression's columns (B, D), the constant last, and the windows' means (B, 1)."""
        past_BL = interpolated(batch["past_y"][..., 0], batch["past_observed"][..., 0])
        mean_B1 = past_BL.mean(dim=1, keepdim=True)
        parts = [past_BL - mean_B1, batch["future_x"].flatten(1), batch["static"], mean_B1, torch.ones_like(mean_B1)]
        return torch.cat(parts, dim=1), mean_B1


BASELINES: dict[str, type[Baseline]] = {
    "ridge": Ridge,
    "repeat_last": RepeatLast,
    "seasonal_naive": SeasonalNaive,
    "seasonal_mean": SeasonalMean,
}


def create_baseline(name: str, sizes: Sizes, **options: Any) -> Baseline:
    """Build a forecaster without an optimiser.

    Args:
        name: "ridge", "repeat_last", "seasonal_naive" or "seasonal_mean".
        sizes: The shape of the problem.
        options: Its options, such as ``season``.

    Raises:
        UserError: If the name or an option is unknown, or an option that has no default is missing.
    """
    if name not in BASELINES:
        raise UserError(f"unknown baseline {name!r}", nearest(name, list(BASELINES)))
    parameters = dict(list(inspect.signature(BASELINES[name]).parameters.items())[1:])
    check_option_names(name, options, parameters)
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise UserError(f"{name} needs the option {option!r}", f"give {option}, such as the steps of a week")
    return BASELINES[name](sizes, **options)


class BaselineCandidate:
    """A baseline as a candidate of a comparison: fit, evaluate, plots.

    Args:
        name: As in `create_baseline`.
        options: Its options.
    """

    def __init__(self, name: str, options: dict[str, Any] | None = None) -> None:
        self.name, self.options = name, dict(options or {})
        self.parameters = 0
        self.samples_seen = 0

    def fit(self, data: WindowData, budget: Any, seed: int) -> None:
        """Fit to the training part; a closed form needs neither the budget nor the seed."""
        self._data = data
        self._model = create_baseline(self.name, data.sizes, **self.options)
        self._model.fit(data)
        self.parameters = self._model.learned
        self.samples_seen = len(data.train) if self.parameters else 0

    def evaluate(self) -> dict[str, float]:
        """Return mae and rmse of the test part, in the data's unit."""
        return evaluate(self._model, self._data, self._data.test)

    @torch.no_grad()
    def plots(self) -> list[ForecastPanel]:
        """Return pictures of the forecasts of a few test windows."""
        data, model = self._data, self._model
        return forecast_panels(data, self.name, lambda batch: data.scaler.inverse_y(model(batch), batch["series"]))


@torch.no_grad()
def evaluate(model: ForecastModel, data: WindowData, windows: WindowDataset) -> dict[str, float]:
    """Return mae and rmse of a point forecaster over windows, in the data's unit."""
    scores = MaskedErrors()
    for batch in _batches(windows):
        forecast, target = (data.scaler.inverse_y(v, batch["series"]) for v in (model(batch), batch["future_y"]))
        scores.update(forecast, target, batch["future_observed"])
    return {name: float(value) for name, value in scores.compute().items()}


def _mae(model: ForecastModel, data: WindowData) -> float:
    return evaluate(model, data, data.val)["mae"]


def _batches(windows: WindowDataset, at_most: int | None = None) -> Iterator[Batch]:
    numbers = torch.arange(len(windows))
    if at_most is not None and len(windows) > at_most:
        numbers = torch.linspace(0, len(windows) - 1, at_most).round().long()
    for chunk in numbers.split(_CHUNK):
        yield windows.batch(chunk)
