"""Training a classifier of series: packed batches, noise on what is read, cross-entropy.

Dimensions in names: N series, T steps of all of them, C channels (variates).
"""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mamba_apps.series_classification.network import SeriesNetwork, pack
from mamba_apps.training import ResumableLoader
from mamba_apps.training.adamw import adamw
from mamba_datasets.series.ts_format import LabelledSeries

_SMOOTHING = 0.1


class PackedSeries(pl.LightningDataModule):
    """Batches of whole series, packed into a row, in an order that follows the run's seed.

    Args:
        known: The series; none is held back.
        batch_size: Series a batch.
    """

    def __init__(self, known: LabelledSeries, batch_size: int) -> None:
        super().__init__()
        self.cases, self.batch_size = list(zip(known.series, known.labels.tolist(), strict=True)), batch_size

    def train_dataloader(self) -> ResumableLoader:
        """Return the batches."""
        seed = torch.initial_seed() % 2**32
        return ResumableLoader(self.cases, self.batch_size, seed=seed, collate_fn=_packed)  # type: ignore[arg-type]


class SeriesTask(pl.LightningModule):
    """A network that classifies packed series, its loss and AdamW.

    Args:
        network: The network, which knows the scale of each variate.
        lr: The highest learning rate; it rises over a tenth of the budget and falls as a cosine.
        weight_decay: AdamW's, on matrices alone.
        noise: Standard deviation of the noise that is added, as a part of each variate's own.
    """

    def __init__(self, network: SeriesNetwork, *, lr: float, weight_decay: float, noise: float) -> None:
        super().__init__()
        self.network, self.lr, self.weight_decay, self.noise = network, lr, weight_decay, noise

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x_1TC, series_1T, label_N = batch
        x_1TC = x_1TC + self.noise * self.network.std_C * torch.randn_like(x_1TC)
        return F.cross_entropy(self.network(x_1TC, series_1T), label_N, label_smoothing=_SMOOTHING)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and its rate over the run's budget."""
        return adamw(self, self.network, lr=self.lr, weight_decay=self.weight_decay)


def _packed(cases: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor, Tensor]:
    series, labels = zip(*cases, strict=True)
    return *pack(series), torch.tensor(labels)
