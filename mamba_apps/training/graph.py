"""Train a task's network by replaying CUDA graphs of its passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_kernels.graphs import ReplayedTraining

if TYPE_CHECKING:
    import lightning.pytorch as pl


class GraphedTraining(Callback):
    """Replay the forward and backward passes of the task's ``network``; see `ReplayedTraining` for what can be.

    A task that calls something else in its training step names it ``captured``. Without a GPU there are no graphs, and
    training runs as ever.
    """

    def __init__(self) -> None:
        self._replayed: ReplayedTraining | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the replay in the place of the network's forward pass.

        Raises:
            UserError: If there is no network to capture, or several processes train.
        """
        network = getattr(pl_module, "captured", None) or getattr(pl_module, "network", None)
        if not isinstance(network, nn.Module):
            raise UserError(f"{type(pl_module).__name__} has no network to capture", "leave out trainer.graph")
        if trainer.world_size > 1:
            raise UserError("graphs are captured on one GPU, and several devices train", "leave out trainer.graph")
        if trainer.strategy.root_device.type == "cuda":
            self._replayed = ReplayedTraining(network)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Take gradients that accumulate out of the capture's memory, which the next replay writes anew."""
        if trainer.accumulate_grad_batches == 1:
            return
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse what trained without a graph.

        Raises:
            UserError: If the step's pass could not be captured: it takes more than tensors, or learns nothing.
        """
        if self._replayed is not None and not self._replayed.captured:
            raise UserError(f"no pass of {type(pl_module).__name__} can be captured", "leave out trainer.graph")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the network its own forward pass back."""
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._remove()

    def _remove(self) -> None:
        if self._replayed is not None:
            self._replayed.remove()
            self._replayed = None
