"""The Python API: fit labelled series of any length, say which class others belong to.

Dimensions in names: N series, C channels (variates), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mamba_apps.errors import UserError
from mamba_apps.series_classification.network import SeriesNetwork, pack
from mamba_datasets.series.ts_format import LabelledSeries


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
        self.mixer, self.options = mixer, dict(options or {})
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.noise, self.seed = noise, seed
        self.network: SeriesNetwork | None = None
        self.classes: tuple[str, ...] = ()

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
        self.network, self.classes = network.eval(), known.classes
        return self

    @torch.no_grad()
    def predict_proba(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each class (N, K).

        Args:
            series: (T, C) each, with as many variates as those that were fitted.

        Raises:
            UserError: Nothing was fitted, or a series has other variates or no step.
        """
        if self.network is None:
            raise UserError("this classifier was not fitted", "call fit first")
        channels = len(self.network.mean_C)
        for number, one in enumerate(series):
            if one.ndim != 2 or one.shape[1] != channels or not len(one):
                raise UserError(f"series {number} is {one.shape}", f"give (steps, {channels}), at least one step")
        parts = (series[start : start + self.batch_size] for start in range(0, len(series), self.batch_size))
        return torch.cat([self.network(*pack(part)).softmax(-1) for part in parts]).numpy()

    def predict(self, series: Sequence[np.ndarray]) -> list[str]:
        """Return the likeliest class of each series; arguments and errors as in `predict_proba`."""
        return [self.classes[place] for place in self.predict_proba(series).argmax(axis=1)]

    def score(self, known: LabelledSeries) -> float:
        """Return which part of labelled series is given its own class."""
        found = self.predict(known.series)
        return float(np.mean([name == known.classes[label] for name, label in zip(found, known.labels, strict=True)]))
