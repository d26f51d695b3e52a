"""Stop a run at the first loss or gradient that is not finite, before it reaches the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.optim import Optimizer


class NonFiniteLossError(RuntimeError):
    """Training met a loss, gradient or weight that is not finite.

    Args:
        message: What was not finite, and where.
        remedy: What the person can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


def refuse_nan(state_dict: Mapping[str, Any], path: Path) -> None:
    """Refuse to save weights that are NaN.

    Args:
        state_dict: The weights and buffers about to be saved.
        path: The checkpoint they would go to, for the message.

    Raises:
        NonFiniteLossError: One is NaN. Infinity is allowed: masks are buffers of -inf.
    """
    tensors = {
        name: value
        for name, value in state_dict.items()
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
    }
    bad = (
        torch.stack([value.isnan().any().to("cpu", non_blocking=True) for value in tensors.values()])
        if tensors
        else None
    )
    if bad is not None and bad.any():
        name = list(tensors)[int(bad.nonzero()[0])]
        raise NonFiniteLossError(
            f"{name} holds NaN: {path} was not written",
            "lower the learning rate, clip gradients (gradient_clip_val=1) or train in precision 32-true",
        )


class NonFiniteGuard(Callback):
    """Raise `NonFiniteLossError` at the first loss or gradient that is not finite."""

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Check the loss of one batch."""
        if not torch.isfinite(loss).all():
            loop = trainer.fit_loop
            raise NonFiniteLossError(
                f"loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}, batch {loop.batch_idx})",
                "lower the learning rate, clip gradients (gradient_clip_val=1) or train in precision 32-true",
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the gradients of one step."""
