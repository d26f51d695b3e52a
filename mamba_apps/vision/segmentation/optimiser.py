"""AdamW's parameter groups, as published segmenters are trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from mamba_apps.training.optimiser import merge_alike
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
    return merge_alike(
        [
            {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * group["lr_scale"]}
            for group in groups
        ]
    )
