"""AdamW, and over a run's budget as forecasters, imputers and classifiers of series are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from mamba_apps.mixers import no_weight_decay
from mamba_apps.training.schedule import over_budget, rate_factor


def adamw(
    task: pl.LightningModule,
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    warmup: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.99),
) -> OptimizerLRScheduler:
    """Return AdamW and its rate over the run's budget, as Lightning takes them.

    Args:
        task: Whose run it is.
        network: What learns.
        lr: The highest learning rate.
        weight_decay: On matrices alone.
        warmup: The part of the budget in which the rate rises; it falls as a cosine over the rest.
        betas: Of the moments.
    """
    optimizer = make_adamw(parameter_groups(network, weight_decay), lr=lr, betas=betas)
    return over_budget(task.trainer, optimizer, lambda spent: rate_factor(spent, warmup))


def make_adamw(
    groups: Sequence[dict[str, Any]],
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
    *,
    lr: float,
    betas: tuple[float, float],
) -> torch.optim.AdamW:
    """Return AdamW, or a kind of it, over groups of parameters; on a GPU one kernel steps a group, not a dozen."""
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    optimiser = kind(groups, lr=lr, betas=betas, fused=on_gpu or None)
    # A fused step says that it takes gradients as the loss scaler leaves them, and then Lightning would not clip them.
    optimiser._step_supports_amp_scaling = False
    return optimiser


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices decay; vectors, and what its mixer wants without, do not."""
    spared = no_weight_decay(module)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (others if parameter.dim() < 2 or name in spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
