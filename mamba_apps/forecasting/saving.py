"""What a saved forecaster is: its network, the scales and columns of its data, and where that data ended."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.baselines import BASELINES, create_baseline
from mamba_apps.forecasting.history import from_history_state, history_state
from mamba_apps.forecasting.models import ForecastModel, Sizes, create
from mamba_apps.forecasting.reading import Reading
from mamba_apps.training import ModelCard, load_card, load_weights, save_model
from mamba_datasets.series import Scaler, SeriesSet

TASK, DOMAIN = "forecasting", "series"
FORMAT_VERSION = 1
_HISTORY = "history."
_RADIUS, _REACH = "radius_VH", "reach_S"
_NETWORK = "network."


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that a forecast needs.

    Args:
        model: The model's registered name, or a baseline's.
        network: The model.
        options: The model's options.
        scaler: The scales of the training part.
        reading: How new data is read.
        levels: The intervals' levels.
        radius_VH: For conformal intervals, how far they reach at each step, on the scaled values.
        reach_S: What of it those of each series do; None for all alike.
        history: Where the data ended, the last ``memory`` steps of each series; None if it was not kept.
        metrics: Scores on the validation part.
        alias: The name of the forecast's column; None for the model's.
        calibration: Steps before each forecast by which its intervals are corrected; 0 for none.
        pads: Whether series shorter than the lookback are led in by unobserved steps.
        training: How it was trained, as plain values by the `Forecaster`'s names, so that training goes on alike.
    """

    model: str
    network: ForecastModel
    options: Mapping[str, Any]
    scaler: Scaler
    reading: Reading
    levels: tuple[float, ...] = ()
    radius_VH: Tensor | None = None
    reach_S: Tensor | None = None
    history: SeriesSet | None = None
    metrics: Mapping[str, float] | None = None
    alias: str | None = None
    calibration: int = 0
    pads: bool = False
    training: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The forecast's column."""
        return self.alias or self.model

    @property
    def memory(self) -> int:
        """Steps of the past that a forecast and its intervals read."""
        return self.network.sizes.lookback + self.calibration

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def reaches(self, ids: Sequence[str]) -> Tensor:
        """Return what of the radius the intervals of some series reach."""
        rows = torch.from_numpy(self.scaler.positions(ids))
        return torch.ones(len(rows)) if self.reach_S is None else self.reach_S[rows]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the `Forecaster` that this is the fit of."""
        reading = self.reading
        return {
            "model": self.model,
            "horizon": self.network.sizes.horizon,
            "lookback": self.network.sizes.lookback,
            "freq": reading.columns["freq"],
            "levels": self.levels,
            "intervals": "quantile" if self.radius_VH is None else "conformal",
            "calibration": self.calibration,
            # The levels say which quantiles there are.
            "model_options": {name: value for name, value in self.options.items() if name != "quantiles"},
            "missing": reading.missing,
            "season": reading.season,
            "tz": reading.tz,
            "short": "pad" if self.pads else "error",
            "calendar": reading.calendar,
            "holidays": reading.holidays,
            "alias": self.alias,
            **reading.named,
            **(self.training or {}),
        }

    def card(self) -> ModelCard:
        """Return the card that stands beside the weights, but for the history."""
        sizes = self.network.sizes
        return ModelCard(
            task=TASK,
            domain=DOMAIN,
            model=self.model,
            arguments={"sizes": vars(sizes).copy(), "options": _plain(self.options)},
            preprocessing={
                "format_version": FORMAT_VERSION,
                "columns": dict(self.reading.columns),
                "missing": self.reading.missing,
                "season": self.reading.season,
                "tz": self.reading.tz,
                "levels": list(self.levels),
                "alias": self.alias,
                "calibration": self.calibration,
                "pads": self.pads,
                "training": dict(self.training or {}),
                "scaler": self.scaler.state_dict(),
            },
            metrics=dict(self.metrics or {}),
        )

    def save(self, directory: str | Path) -> Path:
        """Save in a folder.

        Raises:
            UserError: The folder cannot be written or the disk is full.
        """
        card, bundle = self.card(), _Bundle(self.network)
        for name, value in ((_RADIUS, self.radius_VH), (_REACH, self.reach_S)):
            if value is not None:
                bundle.register_buffer(name, value)
        if self.history is not None:
            tensors, card.preprocessing["history"] = history_state(self.history)
            bundle.history = _Tensors(tensors)
        return save_model(directory, bundle, card)


def load_fitted(directory: str | Path) -> Fitted:
    """Load what `Fitted.save` or training by a recipe saved.

    Raises:
        UserError: There is no such model, it is damaged, or it is not a forecaster.
    """
    card = load_card(directory)
    if (card.task, card.domain) != (TASK, DOMAIN):
        raise UserError(f"{directory} holds a model for {card.task} of {card.domain}", "give a forecaster's folder")
    settings = card.preprocessing
    version = settings.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} holds a forecaster of format {version!r}, this mamba-apps reads format {FORMAT_VERSION}",
            "use the mamba-apps that saved it (model.json names its library_version), or fit again",
        )
    weights = load_weights(directory)
    try:
        network = make_network(card.model, Sizes(**card.arguments["sizes"]), card.arguments["options"])
        network.load_state_dict(_below(weights, _NETWORK))
        history = None
        if "history" in settings:
            history = from_history_state(_below(weights, _HISTORY), settings["history"])
        return Fitted(
            model=card.model,
            network=network.eval(),
            options=card.arguments["options"],
            scaler=Scaler.from_state_dict(settings["scaler"]),
            reading=Reading(settings["columns"], settings["missing"], settings["season"], settings.get("tz")),
            levels=tuple(settings["levels"]),
            radius_VH=weights.get(_RADIUS),
            reach_S=weights.get(_REACH),
            history=history,
            metrics=card.metrics,
            alias=settings["alias"],
            calibration=settings.get("calibration", 0),
            pads=settings.get("pads", False),
            training=settings.get("training") or None,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise misfit(directory, error) from None


def misfit(directory: str | Path, error: Exception) -> UserError:
    """Return the error of a folder whose card says what cannot be."""
    text = " ".join(str(getattr(error, "message", error)).split())[:200]
    return UserError(f"{directory}: the card and the weights do not fit together ({text})", "save the forecaster again")


def make_network(model: str, sizes: Sizes, options: Mapping[str, Any]) -> ForecastModel:
    """Build a registered model or a baseline."""
    if model in BASELINES:
        return create_baseline(model, sizes, **options)
    return create(model, **vars(sizes), **options)


class _Bundle(nn.Module):
    def __init__(self, network: ForecastModel) -> None:
        super().__init__()
        self.network = network


class _Tensors(nn.Module):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """Return nested options as JSON has them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
