"""What the families' adapters of published checkpoints share: unwrapping one, and refusing its keys by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mamba_apps.errors import UserError

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
    expected, found = model.state_dict(), dict(state_dict)
    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    name = source.get("architecture", type(model).__name__)
    adapted = _adapted_by_timm(model, source)
    # Batch norm counts its batches; checkpoints of parameters and statistics alone leave the count out.
    for key in expected.keys() - found.keys():
        if key.endswith("num_batches_tracked"):
            found[key] = expected[key]
    _refuse(name, "missing", expected.keys() - found.keys() - adapted)
    _refuse(name, "unexpected", found.keys() - expected.keys() - adapted)
    for key in expected.keys() - adapted:
        if found[key].shape != expected[key].shape:
            raise UserError(
                f"{name}: {key} has shape {tuple(found[key].shape)} in the checkpoint, {tuple(expected[key].shape)} in "
                "the model",
                "name the checkpoint's own num_classes and input_size in pretrained_cfg_overlay, or another model",
            )
    return found


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


def _refuse(model: str, what: str, keys: set[str]) -> None:
    if keys:
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise UserError(
            f"{model}: {what} in the checkpoint: {', '.join(sorted(keys)[:5])}{more}",
            "give the weights that belong to this model, or name the model that they belong to",
        )
