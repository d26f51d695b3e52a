"""What training asks of an image model by timm's name: its arguments, its head, and what of it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from mamba_apps.errors import UserError
from mamba_apps.vision.weights import check_name


def network_options(name: str, classes: int, size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments that a model is made with: the given ones, its classes, and its size where that is fixed.

    Raises:
        UserError: If timm has no such model.
    """
    check_name(name)
    config = timm.models.get_pretrained_cfg(name)
    # Models without position embeddings or windows take any size, and no argument for it.
    fixed = {"img_size": size} if config is not None and config.fixed_input_size else {}
    return {**fixed, **options, "num_classes": classes}


def freeze_all_but(network: nn.Module, head: nn.Module) -> None:
    """Let nothing but the head learn."""
    network.requires_grad_(requires_grad=False)
    head.requires_grad_(requires_grad=True)


def head_of(network: nn.Module) -> nn.Module:
    """Return the last layer, which gives a score for each class."""
    ask = getattr(network, "get_classifier", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module):
        raise UserError(f"{type(network).__name__} does not tell its classifier", "use a model with get_classifier()")
    return head
