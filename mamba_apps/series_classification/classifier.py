"""The Python API: fit labelled series of any length, say which class others belong to.

Dimensions in names: N series, C channels (variates), K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_apps.errors import UserError
from mamba_apps.forecasting.devices import device_for
from mamba_apps.mixers import spec
from mamba_apps.registry import check_class_options
from mamba_apps.series_classification.network import SeriesNetwork, pack
from mamba_apps.series_classification.task import PackedSeries, SeriesTask
from mamba_apps.training import ModelCard, load_card, load_weights, save_model, saved_folder
from mamba_apps.training.best import fit_best
from mamba_datasets.series.ts_format import LabelledSeries

TASK, DOMAIN = "classification", "series"
FORMAT_VERSION = 1
# Steps of a row of series to be classified: memory grows with them, and attention's cost with their square.
_ROW = 8192
_TRAINING = ("epochs", "batch_size", "lr", "weight_decay", "noise", "seed")


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
        accelerator: As in Lightning: "auto", "cpu", "gpu", ...
        progress: Whether to draw a progress bar on a terminal, and to say now and then elsewhere how far a training is.

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
        accelerator: str = "auto",
        progress: bool = True,
    ) -> None:
        for name, count in (("epochs", epochs), ("batch_size", batch_size)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UserError(f"{name} is {count!r}", "give a whole number of at least 1")
        if not lr > 0:
            raise UserError(f"lr is {lr}", "give a positive number")
        for name, part in (("weight_decay", weight_decay), ("noise", noise)):
            if not part >= 0:
                raise UserError(f"{name} is {part}", "give 0 for none, or more")
        spec(mixer)
        check_class_options("the network", SeriesNetwork, options or (), given=("channels", "classes", "mixer"))
        self.mixer, self.options = mixer, dict(options or {})
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.noise, self.seed, self.accelerator, self.progress = noise, seed, accelerator, progress
        self.network: SeriesNetwork | None = None
        self.classes: tuple[str, ...] = ()
        self.variates: tuple[str, ...] = ()

    def fit(self, known: LabelledSeries) -> SeriesClassifier:
        """Learn from labelled series.

        Args:
            known: The series, as `read_ts` and `read_labelled` read them; there is no early stopping, so that nothing
                is held back.

        Returns:
            This classifier.

        Raises:
            UserError: There are no two classes, they are no such series, or there is no such accelerator.
        """
        if not isinstance(known, LabelledSeries):
            found = f"labelled series were expected, found {type(known).__name__}"
            raise UserError(found, "read them first: mamba_datasets.series.cases.read_labelled(frame_or_path)")
        if len(known.classes) < 2:
            raise UserError(f"the classes are {list(known.classes)}", "give series of at least two")
        device = device_for(self.accelerator)
        torch.manual_seed(self.seed)
        network = SeriesNetwork(known.channels, len(known.classes), mixer=self.mixer, **self.options)
        values = np.concatenate(known.series).astype(np.float64)
        mean_C, std_C = values.mean(axis=0), values.std(axis=0)
        network.mean_C.copy_(torch.from_numpy(mean_C))
        # What never changed in training has scale 1: a small change of it would be a huge one otherwise.
        network.std_C.copy_(torch.from_numpy(np.where(std_C > 1e-7 * np.abs(mean_C), std_C, 1.0)))
        fit_best(
            lambda: SeriesTask(network, lr=self.lr, weight_decay=self.weight_decay, noise=self.noise),
            PackedSeries(known, self.batch_size),
            max_steps=self.epochs * -(-len(known) // self.batch_size),
            accelerator=self.accelerator,
            seed=self.seed,
            progress=self.progress,
            validated=False,
        )
        self.network, self.classes, self.variates = network.to(device).eval(), known.classes, known.variates
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
        card = ModelCard(
            task=TASK,
            domain=DOMAIN,
            model=self.mixer,
            arguments={"channels": self.channels, "options": self.options},
            preprocessing={
                "format_version": FORMAT_VERSION,
                "variates": list(self.variates),
                "training": {name: getattr(self, name) for name in _TRAINING},
            },
            labels=list(self.classes),
        )
        return save_model(directory, network, card)

    @classmethod
    def load(cls, directory: str | Path, *, accelerator: str = "auto", progress: bool = True) -> SeriesClassifier:
        """Load a classifier that `save` saved.

        Args:
            directory: The folder.
            accelerator: Where it computes from now on, whatever it was trained on: "auto", "cpu", "gpu", ...
            progress: As in the class.

        Raises:
            UserError: There is none, it is damaged or of another format, it does not classify series, or there is no
                such accelerator here.
        """
        device = device_for(accelerator)
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
            found = cls(
                card.model,
                options=card.arguments["options"],
                accelerator=accelerator,
                progress=progress,
                **card.preprocessing["training"],
            )
            found.classes, found.variates = tuple(card.labels or ()), tuple(card.preprocessing["variates"])
            network = SeriesNetwork(card.arguments["channels"], len(found.classes), mixer=found.mixer, **found.options)
            network.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, UserError) as error:
            text = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise UserError(
                f"{folder}: the card and the weights do not fit together ({text})", "save the classifier again"
            ) from None
        found.network = network.to(device).eval()
        return found

    @torch.no_grad()
    def predict_proba(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each class (N, K).

        Args:
            series: (T, C) each, with as many variates as those that were fitted.

        Raises:
            UserError: Nothing was fitted, or a series has other variates, no step, or a value that is not finite.
        """
        network, channels = self._known(), self.channels
        series = [np.asarray(one) for one in series]
        for number, one in enumerate(series):
            if one.ndim != 2 or one.shape[1] != channels or not len(one):
                raise UserError(f"series {number} is {one.shape}", f"give (steps, {channels}), at least one step")
            if not np.isfinite(one).all():
                raise UserError(f"series {number} has values that are not finite", "fill them in, as an Imputer does")
        if not series:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        device = network.mean_C.device
        packed = ([tensor.to(device) for tensor in pack(part)] for part in _parts(series, self.batch_size))
        return torch.cat([network(*tensors).softmax(-1) for tensors in packed]).cpu().numpy()

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


def _parts(series: Sequence[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Yield the series in parts of so many at most, and of no more steps than a row may have unless one alone has."""
    part: list[np.ndarray] = []
    for one in series:
        if part and (len(part) == most or sum(map(len, part)) + len(one) > _ROW):
            yield part
            part = []
        part.append(one)
    if part:
        yield part
