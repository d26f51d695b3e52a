"""Training an imputer: gaps are drawn into what was observed, and the error is taken in the gaps alone."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.losses import MaskedErrors, MaskedLoss
from mamba_apps.imputation.network import ImputationNetwork
from mamba_apps.training.adamw import adamw


class ImputationTask(pl.LightningModule):
    """An imputation network with its loss, the mean absolute error of hidden values, and AdamW.

    Args:
        network: The network.
        lr: The highest learning rate; it rises over a tenth of the budget and falls as a cosine.
        weight_decay: AdamW's, on matrices alone.

    Raises:
        UserError: The learning rate is not positive.
    """

    def __init__(self, network: ImputationNetwork, *, lr: float = 2e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        if not lr > 0:
            raise UserError(f"lr is {lr}", "give a positive learning rate")
        self.network, self.lr, self.weight_decay = network, lr, weight_decay
        self.loss, self.scores = MaskedLoss("mae"), MaskedErrors()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return a value for every step (B, L, C)."""
        return self.network(batch["y"], batch["seen"], batch["known"])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss(self(batch), batch["y"], batch["hidden"])
        self.log("train/loss", loss, batch_size=len(batch["y"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score a batch of the windows held back."""
        self.scores.update(self(batch), batch["y"], batch["hidden"])

    def on_validation_epoch_end(self) -> None:
        """Log val/mae and val/rmse, in standard deviations of each variate."""
        for name, value in self.scores.compute().items():
            self.log(f"val/{name}", value.float())
        self.scores.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and its rate over the run's budget."""
        return adamw(self, self.network, lr=self.lr, weight_decay=self.weight_decay)
