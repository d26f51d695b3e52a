"""MambaVision from published and own checkpoints: every key must find its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mamba_apps.vision.pretrained import checked, unwrapped

_RENAMED = (
    (re.compile(r"^patch_embed\.conv_down\."), "stem."),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),
)
_DOWNSAMPLE = re.compile(r"^levels\.(\d+)\.downsample\.reduction\.0\.")


def adapt_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a MambaVision checkpoint, released or our own, under our names.

    Args:
        checkpoint: The state dict, or what holds it under "state_dict" or "model".
        model: The model it is for.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
    """
    found = unwrapped(checkpoint, "module.", "encoder.", "model.")
    return checked({our_name(name): tensor for name, tensor in found.items()}, model)


def our_name(name: str) -> str:
    """Return our name of a parameter or buffer that the released weights call ``name``."""
    for pattern, ours in _RENAMED:
        name = pattern.sub(ours, name)
    # Ours stands at the head of the level it leads to.
    return _DOWNSAMPLE.sub(lambda match: f"levels.{int(match[1]) + 1}.downsample.", name)
