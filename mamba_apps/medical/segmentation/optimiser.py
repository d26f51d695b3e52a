"""The optimiser: nnU-Net's SGD, or AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import no_weight_decay
from mamba_datasets.report import nearest

OPTIMISERS = ("sgd", "adamw")
POWER = 0.9
"""The rate falls as this power of the budget that is left."""
_MOMENTUM = 0.99


def make_optimiser(network: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return the optimiser over a network's parameters; vectors and what a mixer wants without do not decay.

    Args:
        network: What learns.
        name: "sgd" (Nesterov, momentum 0.99) or "adamw".
        lr: The highest rate.
        weight_decay: Of matrices and kernels.

    Raises:
        UserError: If the name is unknown.
    """
    check_optimiser(name)
    spared = no_weight_decay(network)
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for key, parameter in network.named_parameters():
        groups[0.0 if parameter.dim() < 2 or key in spared else weight_decay].append(parameter)
    chosen: list[dict[str, Any]] = [{"params": some, "weight_decay": decay} for decay, some in groups.items() if some]
    if name == "sgd":
        return torch.optim.SGD(chosen, lr=lr, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(chosen, lr=lr)


def check_optimiser(name: str) -> None:
    """Raise a `UserError` with the nearest names where an optimiser is unknown."""
    if name not in OPTIMISERS:
        raise UserError(f"unknown optimiser {name!r}", nearest(name, list(OPTIMISERS)))
