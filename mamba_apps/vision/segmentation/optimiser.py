"""AdamW's parameter groups and the learning rate's fall, as published segmenters are trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from mamba_apps.vision.segmentation.network import Segmenter


def parameter_groups(network: Segmenter, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return the backbone's groups, by depth, and the head's; vectors and what a mixer wants without do not decay.

    Args:
        network: The network.
        lr: The head's learning rate, and that of the backbone's last layer times ``layer_decay``.
        weight_decay: Of matrices.
        layer_decay: What the rate is multiplied by from each layer of the backbone to the one before; 1 for none.
    """
    groups = network.backbone.parameter_groups(weight_decay, layer_decay)
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest: list[nn.Parameter] = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    for decay, matrices in ((weight_decay, True), (0.0, False)):
        chosen = [parameter for parameter in rest if (parameter.dim() > 1) == matrices]
        groups.append({"params": chosen, "weight_decay": decay, "lr_scale": 1.0})
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group["lr_scale"]}
        for group in groups
    ]


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
