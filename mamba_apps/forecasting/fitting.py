"""How a forecaster is fitted: a model by training within a budget, a baseline in closed form, intervals from errors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.baselines import create_baseline, evaluate
from mamba_apps.forecasting.data import WindowData
from mamba_apps.forecasting.defaults import default_lookback, default_max_steps, default_val_steps, least_steps
from mamba_apps.forecasting.intervals import conformal_radius, relative_reach
from mamba_apps.forecasting.models import ForecastModel
from mamba_apps.forecasting.saving import Fitted
from mamba_apps.forecasting.task import ForecastTask
from mamba_apps.training.best import fit_best
from mamba_datasets.errors import DataError
from mamba_datasets.series import SeriesSet

# Validation reads no more windows than tell one fit from another; of millions it would take longer than training.
_EVAL_WINDOWS = 20_000


@dataclass(frozen=True)
class Training:
    """How a model is trained; see `Forecaster` for each.

    Args:
        loss: "mae", "mse" or "huber".
        lr: The highest learning rate.
        max_steps: Most optimiser steps; None follows the number of windows.
        batch_size: Windows a step.
        patience: Stop after so many validations without a better one.
        seed: Of all randomness.
        accelerator: As in Lightning.
        graph: Whether a GPU replays whole steps from a CUDA graph.
        progress: Whether to draw a progress bar on a terminal, and to say now and then elsewhere how far a training is.
    """

    loss: str
    lr: float
    max_steps: int | None
    batch_size: int
    patience: int
    seed: int
    accelerator: str
    graph: bool
    progress: bool


def windows_to_learn(
    series_set: SeriesSet,
    *,
    lookback: int | None,
    horizon: int,
    val_steps: int | None,
    calibration: int,
    pads: bool,
    **options: Any,
) -> WindowData:
    """Return the windows that a forecaster learns from and is validated on.

    Args:
        series_set: The series.
        lookback: Steps of the past; None for what the data suggests.
        horizon: Steps to forecast.
        val_steps: Steps held back; None for what the data suggests.
        calibration: Steps by whose forecasts intervals are corrected.
        pads: Whether short series are led in by unobserved steps.
        options: Further options of `WindowData`.

    Raises:
        DataError: A series is too short.
        UserError: A number does not fit the data.
    """
    need = least_steps(lookback, horizon, padded=pads)
    for number in (series_set.lengths < need).nonzero()[0][:1]:
        raise DataError(
            series_set.source,
            f"series {series_set.ids[number]!r}",
            f"at least {need} steps were expected (lookback + horizon), found {series_set.lengths[number]}",
            "shorten lookback or horizon, or leave the series out",
        )
    held = default_val_steps(series_set, horizon) if val_steps is None else val_steps
    if calibration > held:
        raise UserError(
            f"calibration is {calibration}, and {held} steps are held back: the others were learned",
            "give fewer, or as many val_steps",
        )
    lookback = lookback or default_lookback(series_set, horizon, held, padded=pads)
    if pads:
        # A window then reaches back from any step but the first.
        short = series_set.lengths < lookback + horizon + held
        series_set = series_set.lead_in(np.where(short, lookback - 1, 0))
    return WindowData(
        series_set,
        lookback=lookback,
        horizon=horizon,
        val_steps=held,
        eval_windows=_EVAL_WINDOWS,
        short="skip",
        **options,
    )


def fit_model(
    model: str,
    data: WindowData,
    options: dict[str, Any],
    training: Training,
    *,
    quantiles: tuple[float, ...] | None,
    levels: tuple[float, ...],
    start: ForecastModel | None = None,
) -> Fitted:
    """Train a model; the weights that were best on the validation part are kept.

    Args:
        model: Its registered name.
        data: The windows, with a validation part.
        options: The model's options.
        training: How it is trained.
        quantiles: The quantiles it forecasts itself; None for a point forecast.
        levels: The intervals around a point forecast; empty where quantiles bound them.
        start: The model whose weights the training begins with; None for new ones.

    Raises:
        UserError: An option does not fit, or the weights to begin with are of another model.
    """
    steps = (
        default_max_steps(len(data.train), training.batch_size) if training.max_steps is None else training.max_steps
    )

    def make_task() -> ForecastTask:
        task = ForecastTask(
            model,
            model_options=options,
            sizes=data.sizes,
            loss=training.loss,
            quantiles=quantiles,
            lr=training.lr,
        )
        if start is not None:
            _begin_with(task, start)
        return task

    task, metrics = fit_best(
        make_task,
        data,
        max_steps=steps,
        accelerator=training.accelerator,
        graph=training.graph,
        patience=training.patience,
        seed=training.seed,
        progress=training.progress,
    )
    found = task.fitted(data, metrics)
    if not levels:
        return found
    return _with_intervals(found, data, levels)


def fit_baseline(model: str, data: WindowData, options: dict[str, Any], levels: tuple[float, ...]) -> Fitted:
    """Fit a baseline.

    Args:
        model: Its name.
        data: The windows, with a validation part.
        options: Its options.
        levels: The intervals around its forecast.

    Raises:
        UserError: An option does not fit.
    """
    network = create_baseline(model, data.sizes, **options)
    network.fit(data)
    metrics = {f"val/{name}": value for name, value in evaluate(network, data, data.val).items()}
    found = Fitted(
        model,
        network.eval(),
        options,
        data.scaler,
        data.reading,
        history=data.series_set.last(data.lookback),
        metrics=metrics,
    )
    return _with_intervals(found, data, levels) if levels else found


def _begin_with(task: ForecastTask, start: ForecastModel) -> None:
    try:
        task.network.load_state_dict(start.state_dict())
    except RuntimeError:
        raise UserError(
            "the weights to begin with are of another shape than this data needs",
            "keep lookback, horizon, levels and covariates as they were, or fit without warm_start",
        ) from None


@torch.no_grad()
def _with_intervals(found: Fitted, data: WindowData, levels: tuple[float, ...]) -> Fitted:
    errors, seen, series = [], [], []
    windows = data.val
    for numbers in torch.arange(len(windows)).split(data.eval_batch_size):
        batch = windows.batch(numbers)
        errors.append((batch["future_y"] - found.network(batch))[..., 0])
        seen.append(batch["future_observed"][..., 0])
        series.append(batch["series"])
    error_BH, seen_BH, series_B = torch.cat(errors), torch.cat(seen), torch.cat(series)
    reach_S = relative_reach(error_BH, seen_BH, series_B, len(data.series_set))
    radius_VH = conformal_radius(error_BH / reach_S[series_B, None], seen_BH, levels)
    return dataclasses.replace(found, levels=levels, radius_VH=radius_VH, reach_S=reach_S)
