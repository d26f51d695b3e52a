"""Which parameters of a forecaster decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from mamba_apps.mixers import no_weight_decay


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices decay; vectors, and what its mixer wants without, do not."""
    spared = no_weight_decay(module)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (others if parameter.dim() < 2 or name in spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
