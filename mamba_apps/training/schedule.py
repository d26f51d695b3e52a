"""The learning rate over a budget of epochs, steps or seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler

Rate = Callable[[float], float]
"""What a rate is multiplied by, over the part of the budget that is spent."""


def budget_spent(trainer: pl.Trainer, step: int) -> float:
    """Return the part of the run's budget that is spent after ``step`` optimiser steps, in [0, 1].

    A budget of seconds is known as it passes only: the rate then follows the clock, and two runs differ.
    """
    total = trainer.estimated_stepping_batches
    if math.isfinite(total) and total > 0:
        return min(step / total, 1.0)
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    timer = next((callback for callback in callbacks if isinstance(callback, Timer)), None)
    left = timer.time_remaining() if timer is not None else None
    if timer is None or left is None:
        return 0.0
    elapsed = timer.time_elapsed()
    return min(elapsed / max(elapsed + left, 1e-9), 1.0)


def over_budget(
    trainer: pl.Trainer, optimiser: torch.optim.Optimizer, rates: Rate | Sequence[Rate]
) -> OptimizerLRScheduler:
    """Return an optimiser whose rates follow the run's budget, as Lightning takes them.

    Args:
        trainer: Whose budget it is.
        optimiser: The optimiser.
        rates: Of all of its groups, or of each.
    """

    def by_step(rate: Rate) -> Callable[[int], float]:
        return lambda step: rate(budget_spent(trainer, step))

    factors = by_step(rates) if callable(rates) else [by_step(rate) for rate in rates]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factors)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate_factor(spent: float, warmup: float, floor: float = 1e-3) -> float:
    """Return what the learning rate is multiplied by: a linear warm-up, then half a cosine down to ``floor``.

    Args:
        spent: The part of the budget that is spent, in [0, 1].
        warmup: The part of the budget that the warm-up takes, in [0, 1).
        floor: Where it starts and ends, above 0.
    """
    if spent < warmup:
        return floor + (1 - floor) * spent / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (spent - warmup) / (1 - warmup)))


def poly_factor(spent: float, warmup: float, power: float = 1.0, floor: float = 1e-6) -> float:
    """Return what the learning rate is multiplied by: a linear warm-up, then a fall to 0 as a power of what is left.

    Args:
        spent: The part of the budget that is spent, in [0, 1].
        warmup: The part of the budget that the warm-up takes, in [0, 1).
        power: 1 for a straight line.
        floor: Where it starts, above 0.
    """
    fall = float((1 - spent) ** power)
    return fall * (floor + (1 - floor) * spent / warmup) if spent < warmup else fall
