"""The moving average of a model's weights, by which it is validated, tested and saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mamba_apps.errors import UserError
from mamba_apps.training.sharding import shard_like, whole_state

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Ema(WeightAveraging):
    """Keep an exponential moving average of weights and buffers; short runs average over less.

    After step n the decay is at most (1 + n) / (10 + n), so that the average forgets where training began.

    Args:
        decay: How much of the average stays at each step, in (0, 1).

    Raises:
        UserError: If the decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"the decay of the weights' average is {decay}", "give a number in (0, 1), such as 0.999")

        @torch.no_grad()
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], seen: Tensor | int) -> None:
            count = int(seen)
            get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, seen)

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average beside the model, on its device."""
        # Lightning calls the module's own setup, which may make its layers, and moves it to its device only later.
        pl_module.setup(stage)
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the average as the model is cut, where the strategy shards it."""
        if self._average_model is not None:
            shard_like(self._average_model.module, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average in the model's place, and the model beside it."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole_state(checkpoint["state_dict"], trainer.is_global_zero)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average and the weights beside it where a run goes on; elsewhere the average is all there is."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the average, which the model has taken over: a later validation is of the model as it then is."""
        self._average_model = None
