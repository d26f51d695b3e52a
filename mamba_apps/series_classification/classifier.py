"""The Python API: fit labelled series of any length, say which class others belong to.

Dimensions in names: N series, C channels (variates), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mamba_apps.errors import UserError
from mamba_apps.mixers import spec
from mamba_apps.registry import check_class_options
from mamba_apps.series_classification.network import SeriesNetwork, pack
from mamba_apps.training import ModelCard, load_card, load_weights, save_model, saved_folder
from mamba_datasets.series.ts_format import LabelledSeries

TASK, DOMAIN = "classification", "series"
FORMAT_VERSION = 1


class SeriesClassifier:
    """Say which class multivariate series belong to, each of its own length.

    Args:
        mixer: A registered mixer, such as "mamba1", "mamba2" or "attention".
        options: Further options of `SeriesNetwork`.
        epochs: Passes over the training series.
        batch_size: Series a step.
        lr: The highest learning rate of AdamW; it rises for a tenth of the steps and falls as a cosine.
        weight_decay: AdamW's.
        noise: Standard deviation of the noise that is added in training, as a part of each variate's own.
        seed: Of all randomness.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        mixer: str = "mamba1",
        *,
        options: Mapping[str, Any] | None = None,
        epochs: int = 30,
        batch_size: int = 32,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
            if not value > 0:
                raise UserError(f"{name} is {value}", "give a positive number")
        spec(mixer)
        check_class_options("the network", SeriesNetwork, options or (), given=("channels", "classes", "mixer"))
        self.mixer, self.options = mixer, dict(options or {})
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.noise, self.seed = noise, seed
        self.network: SeriesNetwork | None = None
        self.classes: tuple[str, ...] = ()
        self.variates: tuple[str, ...] = ()

    def fit(self, known: LabelledSeries) -> SeriesClassifier:
        """Learn from labelled series.

        Args:
            known: The series; there is no early stopping, so that nothing is held back.

        Returns:
            This classifier.
        """
        torch.manual_seed(self.seed)
        network = SeriesNetwork(known.channels, len(known.classes), mixer=self.mixer, **self.options)
        values = np.concatenate(known.series)
        network.mean_C.copy_(torch.from_numpy(values.mean(axis=0)))
        network.std_C.copy_(torch.from_numpy(values.std(axis=0)).clamp(min=1e-6))
        labels_N = torch.from_numpy(known.labels)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = self.epochs * -(-len(known) // self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        network.train()
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(known)).split(self.batch_size):
                x_1TC, series_1T = pack([known.series[number] for number in chosen.tolist()])
                x_1TC = x_1TC + self.noise * network.std_C * torch.randn_like(x_1TC)
                loss = F.cross_entropy(network(x_1TC, series_1T), labels_N[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.network, self.classes, self.variates = network.eval(), known.classes, known.variates
        return self

    @property
    def channels(self) -> int:
        """How many variates it was fitted on (C)."""
        return len(self._known().mean_C)

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self._known().parameters())

    def save(self, directory: str | Path) -> Path:
        """Save the fitted classifier, for `load` and `mamba-apps classify`.

        Returns:
            The folder.

        Raises:
            UserError: Nothing was fitted, or the folder cannot be written.
        """
        network = self._known()
        training = {
            name: getattr(self, name) for name in ("epochs", "batch_size", "lr", "weight_decay", "noise", "seed")
        }
        card = ModelCard(
            task=TASK,
            domain=DOMAIN,
            model=self.mixer,
            arguments={"channels": self.channels, "options": self.options},
            preprocessing={
                "format_version": FORMAT_VERSION,
                "variates": list(self.variates),
                "training": training,
            },
            labels=list(self.classes),
        )
        return save_model(directory, network, card)

    @classmethod
    def load(cls, directory: str | Path) -> SeriesClassifier:
        """Load a classifier that `save` saved.

        Raises:
            UserError: There is none, it is damaged or of another format, or it does not classify series.
        """
        folder = saved_folder(directory)
        card = load_card(folder)
        if (card.task, card.domain) != (TASK, DOMAIN):
            raise UserError(f"{folder} holds a model for {card.task} of {card.domain}", "give a series classifier's")
        version = card.preprocessing.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder} holds a series classifier of format {version!r}, this mamba-apps reads format "
                f"{FORMAT_VERSION}",
                "use the mamba-apps that saved it (model.json names its library_version), or fit again",
            )
        weights = load_weights(folder)
        try:
            found = cls(card.model, options=card.arguments["options"], **card.preprocessing["training"])
            found.classes, found.variates = tuple(card.labels or ()), tuple(card.preprocessing["variates"])
            network = SeriesNetwork(card.arguments["channels"], len(found.classes), mixer=found.mixer, **found.options)
            network.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, UserError) as error:
            text = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise UserError(
                f"{folder}: the card and the weights do not fit together ({text})", "save the classifier again"
            ) from None
        found.network = network.eval()
        return found

    @torch.no_grad()
    def predict_proba(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each class (N, K).

        Args:
            series: (T, C) each, with as many variates as those that were fitted.

        Raises:
            UserError: Nothing was fitted, or a series has other variates or no step.
        """
        network, channels = self._known(), self.channels
        for number, one in enumerate(series):
            if one.ndim != 2 or one.shape[1] != channels or not len(one):
                raise UserError(f"series {number} is {one.shape}", f"give (steps, {channels}), at least one step")
        parts = (series[start : start + self.batch_size] for start in range(0, len(series), self.batch_size))
        return torch.cat([network(*pack(part)).softmax(-1) for part in parts]).numpy()

    def predict(self, series: Sequence[np.ndarray]) -> list[str]:
        """Return the likeliest class of each series; arguments and errors as in `predict_proba`."""
        return [self.classes[place] for place in self.predict_proba(series).argmax(axis=1)]

    def score(self, known: LabelledSeries) -> float:
        """Return which part of labelled series is given its own class."""
        found = self.predict(known.series)
        return float(np.mean([name == known.classes[label] for name, label in zip(found, known.labels, strict=True)]))

    def _known(self) -> SeriesNetwork:
        if self.network is None:
            raise UserError("this classifier was not fitted", "call fit first, or SeriesClassifier.load(directory)")
        return self.network
