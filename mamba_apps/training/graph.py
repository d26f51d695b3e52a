"""Train a task's network by replaying CUDA graphs of its passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.training.guard import NonFiniteGuard
from mamba_apps.training.whole_step import WholeOptimization, WholeStep, fuse, is_odd, whole_step
from mamba_kernels.graphs import ReplayedTraining

if TYPE_CHECKING:
    import lightning.pytorch as pl


class GraphedTraining(Callback):
    """Replay whole steps where that can be, see `whole_step`, else the passes of the task's ``network``.

    A task that calls something else than its network in its training step names it ``captured``; what can be is said at
    `ReplayedTraining`. Without a GPU there are no graphs, and training runs as ever.
    """

    def __init__(self) -> None:
        self._replayed: ReplayedTraining | None = None
        self._whole: WholeStep | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the replay in the place of the network's forward pass.

        Raises:
            UserError: If there is no network to capture.
        """
        network = getattr(pl_module, "captured", None) or getattr(pl_module, "network", None)
        if not isinstance(network, nn.Module):
            raise UserError(f"{type(pl_module).__name__} has no network to capture", "leave out trainer.graph")
        if trainer.strategy.root_device.type != "cuda":
            return
        fuse(trainer.optimizers)
        if not self._begin_whole(trainer, pl_module):
            self._replayed = ReplayedTraining(network)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Take gradients that accumulate out of the capture's memory, which the next replay writes anew."""
        # The optimisers' lists: to search the module for its parameters takes the host as long as a small pass.
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse what trained without a graph.

        Raises:
            UserError: If the step's pass could not be captured: it takes more than tensors, or learns nothing.
        """
        if self._whole is None:
            refused = self._replayed is not None and not self._replayed.captured
        else:
            refused = not (self._whole.captured or is_odd(trainer, batch_idx))
        if refused:
            raise UserError(f"no pass of {type(pl_module).__name__} can be captured", "leave out trainer.graph")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the network its own forward pass back."""
        self._remove(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._remove(trainer)

    def _begin_whole(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        optimization = trainer.fit_loop.epoch_loop.automatic_optimization
        if not isinstance(optimization, WholeOptimization):
            return False
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        guard = next((callback for callback in callbacks if isinstance(callback, NonFiniteGuard)), None)
        optimization.guard = guard
        optimization.whole = self._whole = whole_step(trainer, pl_module, known=[self, *([guard] if guard else [])])
        return self._whole is not None

    def _remove(self, trainer: pl.Trainer) -> None:
        if self._whole is not None:
            optimization = trainer.fit_loop.epoch_loop.automatic_optimization
            cast(WholeOptimization, optimization).whole = None
            self._whole.free()
            self._whole = None
        if self._replayed is not None:
            self._replayed.remove()
            self._replayed = None
