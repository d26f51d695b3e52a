"""What a saved imputer is: its network, the scales and columns of its data, how it fills.

Dimensions in names: S series, T steps of a series, L steps of a window, C variates, K known columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.imputation.fills import FILLS
from mamba_apps.imputation.network import ImputationNetwork
from mamba_apps.imputation.scales import Scales, known_columns, long_season
from mamba_apps.imputation.windows import Steps
from mamba_apps.training import ModelCard, load_card, load_weights, save_model
from mamba_datasets.errors import DataError
from mamba_datasets.series import Variates, read_variates

TASK, DOMAIN = "imputation", "series"
FORMAT_VERSION = 1
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Filler:
    """Everything that filling needs.

    Args:
        model: The mixer's registered name, or a fill's.
        network: The network; None for a fill.
        sizes: "variates", "known" and "window".
        options: The network's options.
        reading: How data is read, by `read_variates`' names.
        calendar: What `calendar_columns` is told; None for no calendar.
        scales: The scales of the fit's data.
        metrics: Scores on the part that was held back.
        training: How it was trained, as plain values by the `Imputer`'s names, so that it is fitted anew alike.
    """

    model: str
    network: ImputationNetwork | None
    sizes: Mapping[str, int]
    options: Mapping[str, Any]
    reading: Mapping[str, Any]
    calendar: Mapping[str, Any] | None
    scales: Scales
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def read(self, source: Any) -> Variates:
        """Read series with the columns of the fit's data.

        Raises:
            DataError: They cannot be used, or one was not in the fit's data.
        """
        data = read_variates(source, **self.reading)
        self.scales.select(data)
        return data

    def fill(self, data: Variates, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return values (T, C) of each series with NaN filled in; the others stay as they are.

        Args:
            data: The series.
            values: Their values, or some of them.

        Raises:
            DataError: A column of a series has no value, and this is filled without learning.
        """
        if self.network is not None:
            return self._by_network(data, values)
        season = long_season(data.freq)
        for key, values_TC in zip(data.keys, values, strict=True):
            empty = np.flatnonzero(np.isnan(values_TC).all(axis=0))
            if len(empty):
                found = f"at least one value of {data.names[empty[0]]!r} to fill from was expected, found none"
                raise DataError(data.source, f"series {str(key)!r}", found, "leave the series or the column out")
        return [FILLS[self.model](values_TC, season) for values_TC in values]

    def _by_network(self, data: Variates, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        known, _ = known_columns(data, self.calendar)
        steps = Steps(self.scales.scaled(data, values), known, self.sizes["window"])
        found = self._windows(steps)
        mean_SC, std_SC = self.scales.select(data)
        filled = []
        for number, values_TC in enumerate(values):
            end = int(steps.first_S[number] + steps.length_S[number])
            unscaled_TC = found[end - len(values_TC) : end] * std_SC[number] + mean_SC[number]
            filled.append(np.where(np.isnan(values_TC), unscaled_TC, values_TC))
        return filled

    @torch.inference_mode()
    def _windows(self, steps: Steps) -> np.ndarray:
        """Return scaled values of the steps of every window with a gap, as they are laid out; the others are NaN."""
        assert self.network is not None  # noqa: S101  (fill looks)
        device, window = next(self.network.parameters()).device, steps.window
        starts = np.concatenate(
            [first + _overlapping(length, window) for first, length in zip(steps.first_S, steps.length_S, strict=True)]
        )
        lost = np.concatenate([[0], np.cumsum(steps.gaps)])
        starts = starts[lost[starts + window] > lost[starts]]
        found_NC = np.full((len(steps.gaps), self.sizes["variates"]), np.nan)
        margin_N = np.full(len(found_NC), -1)
        # A step is taken from the window in which it lies furthest from the edge.
        margin_L = np.minimum(np.arange(window), np.arange(window)[::-1])
        for first in range(0, len(starts), _BATCH):
            start_B = starts[first : first + _BATCH]
            batch = (x.to(device) for x in steps.gather(start_B))
            y_RC = self.network(*batch).cpu().numpy().reshape(-1, found_NC.shape[1])
            rows_R, margin_R = (start_B[:, None] + np.arange(window)).ravel(), np.tile(margin_L, len(start_B))
            better = np.flatnonzero(margin_R > margin_N[rows_R])
            # Of several windows over a step the last one written stays: the one with the widest margin.
            better = better[np.argsort(margin_R[better], kind="stable")]
            found_NC[rows_R[better]], margin_N[rows_R[better]] = y_RC[better], margin_R[better]
        return found_NC

    def save(self, directory: str | Path) -> Path:
        """Save in a folder.

        Raises:
            UserError: The folder cannot be written or the disk is full.
        """
        card = ModelCard(
            task=TASK,
            domain=DOMAIN,
            model=self.model,
            arguments={"sizes": dict(self.sizes), "options": dict(self.options)},
            preprocessing={
                "format_version": FORMAT_VERSION,
                "reading": dict(self.reading),
                "calendar": None if self.calendar is None else dict(self.calendar),
                "keys": list(self.scales.keys),
                "training": dict(self.training),
            },
            metrics=dict(self.metrics),
        )
        return save_model(directory, _Bundle(self.network, self.scales.mean_SC, self.scales.std_SC), card)


def load_filler(directory: str | Path) -> Filler:
    """Load what `Filler.save` saved.

    Raises:
        UserError: There is no such model, it is damaged, of another format, or it is not an imputer.
    """
    card = load_card(directory)
    if (card.task, card.domain) != (TASK, DOMAIN):
        raise UserError(f"{directory} holds a model for {card.task} of {card.domain}", "give an imputer's folder")
    settings = card.preprocessing
    version = settings.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} holds an imputer of format {version!r}, this mamba-apps reads format {FORMAT_VERSION}",
            "use the mamba-apps that saved it (model.json names its library_version), or fit again",
        )
    weights = load_weights(directory)
    try:
        sizes, options, network = card.arguments["sizes"], card.arguments["options"], None
        keys = tuple(settings["keys"])
        if card.model not in FILLS:
            network = ImputationNetwork(sizes["variates"], sizes["known"], mixer=card.model, **options)
        shape = (len(keys), sizes["variates"])
        bundle = _Bundle(network, np.empty(shape), np.empty(shape))
        bundle.load_state_dict(weights)
        return Filler(
            model=card.model,
            network=None if network is None else network.eval(),
            sizes=sizes,
            options=options,
            reading=settings["reading"],
            calendar=settings["calendar"],
            scales=Scales(keys, bundle.mean_SC.numpy(), bundle.std_SC.numpy()),
            metrics=card.metrics,
            training=settings.get("training", {}),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        raise misfit(directory, error) from None


def misfit(directory: str | Path, error: Exception) -> UserError:
    """Return the error of a folder whose card says what cannot be."""
    text = " ".join(str(getattr(error, "message", error)).split())[:200]
    return UserError(f"{directory}: the card and the weights do not fit together ({text})", "save the imputer again")


class _Bundle(nn.Module):
    def __init__(self, network: ImputationNetwork | None, mean_SC: np.ndarray, std_SC: np.ndarray) -> None:
        super().__init__()
        self.network = network
        self.mean_SC: torch.Tensor
        self.std_SC: torch.Tensor
        self.register_buffer("mean_SC", torch.from_numpy(mean_SC))
        self.register_buffer("std_SC", torch.from_numpy(std_SC))


def _overlapping(length: int, window: int) -> np.ndarray:
    """Return where windows begin that overlap by half and cover all steps."""
    starts = np.arange(0, length - window + 1, max(1, window // 2))
    return np.unique([*starts, length - window])
