"""The moving average of a model's weights, by which it is validated, tested and saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

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

        super().__init__()
        self._decay = decay
        self._followed: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average beside the model, on its device."""
        # Lightning calls the module's own setup, which may make its layers, and moves it to its device only later.
        pl_module.setup(stage)
        self._device = trainer.strategy.root_device
        self._followed = None
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the average as the model is cut, where the strategy shards it."""
        if self._average_model is not None:
            shard_like(self._average_model.module, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the average follow a step."""
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        # The callback's own way reads the count from the device, and waits for it, at every step.
        if self._followed is None:
            self._followed = int(self._average_model.n_averaged)
        count = self._followed
        decay = min(self._decay, (1 + count) / (10 + count)) if count else 0.0
        averaged = self._average_model.module
        follow(list(averaged.parameters()), list(pl_module.parameters()), decay)
        follow(list(averaged.buffers()), list(pl_module.buffers()), decay)
        self._average_model.n_averaged += 1
        self._followed += 1

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


@torch.no_grad()
def follow(averaged: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """Move averages towards values in place; those of whole numbers take the value.

    Args:
        averaged: The averages.
        current: The values, as many.
        decay: How much of an average stays.
    """
    pairs = list(zip(averaged, current, strict=True))
    numbers = [(average.detach(), value.detach()) for average, value in pairs if average.is_floating_point()]
    if numbers:
        torch._foreach_lerp_([average for average, _ in numbers], [value for _, value in numbers], 1 - decay)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(value)
