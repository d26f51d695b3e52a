"""What the families' adapters of published checkpoints share: unwrapping one, and refusing its keys by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mamba_apps.state_dicts import fitted

_CONTAINERS = ("state_dict", "model")


def unwrapped(checkpoint: Mapping[str, Any], *prefixes: str) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, a plain one or one under "state_dict" or "model".

    Args:
        checkpoint: What the file held.
        prefixes: Beginnings of keys to leave out, in whatever order they come, such as "module.".
    """
    inner = next((checkpoint[name] for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping)), checkpoint)
    wrapping = re.compile("^(" + "|".join(map(re.escape, prefixes)) + ")*")
    return {wrapping.sub("", name): tensor for name, tensor in inner.items()}


def checked(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict under the model's names, after making sure that each of its keys finds its place.

    timm loads leniently once ``num_classes`` differs from the checkpoint's; this is why the check stands before it.
    What timm itself adapts is let through: a classifier for another number of classes, and a first convolution for
    another number of channels.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
    """
    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    return fitted(
        source.get("architecture", type(model).__name__),
        state_dict,
        model.state_dict(),
        "give the model that these weights belong to; if they have other classes or channels than its release, name "
        "theirs: pretrained_cfg_overlay={'num_classes': ..., 'input_size': ...}",
        _adapted_by_timm(model, source),
    )


def _adapted_by_timm(model: nn.Module, source: Mapping[str, Any]) -> set[str]:
    """Return the keys that timm drops or converts, because the model was asked for other classes or channels."""
    modules: list[str] = []
    if getattr(model, "num_classes", None) != source.get("num_classes"):
        modules += _names(source.get("classifier"))
    if getattr(model, "in_chans", None) != source.get("input_size", (None,))[0]:
        modules += _names(source.get("first_conv"))
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def _names(modules: str | Iterable[str] | None) -> list[str]:
    return [modules] if isinstance(modules, str) else list(modules or ())
