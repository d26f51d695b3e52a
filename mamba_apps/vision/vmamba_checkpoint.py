"""VMamba from published and own checkpoints, whichever release they come from: every key must find its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.vision.pretrained import checked, unwrapped

# Names of the first releases, by their beginnings or in their middle.
_LEGACY = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
)


def resized_pos_embed(pos_embed_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return position embeddings for a grid of any size, bicubic as in the reference: the same for the same size."""
    return F.interpolate(pos_embed_BDHW, size=size, mode="bicubic", align_corners=False)


def adapt_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return a published checkpoint's tensors under the names of ``model``, a `VMamba`.

    Projections stored as 1 x 1 convolutions become matrices; position embeddings are resized; the norms of a dense
    task's features, which classification checkpoints lack, keep their values.

    Args:
        checkpoint: What the file held: a state dict, or a dict that holds one under "model" or "state_dict".
        model: The model that will load the result.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
    """
    expected = model.state_dict()
    found = {}
    for name, tensor in unwrapped(checkpoint, "module.", "backbone.").items():
        for pattern, ours in _LEGACY:
            name = re.sub(pattern, ours, name)
        if name in expected and tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and expected[name].dim() == 2:
            tensor = tensor[:, :, 0, 0]
        if name == "pos_embed" and name in expected:
            tensor = resized_pos_embed(tensor, tuple(expected[name].shape[-2:]))
        found[name] = tensor
    for name, tensor in expected.items():
        if name.startswith("outnorm"):
            found.setdefault(name, tensor)
    return checked(found, model)
