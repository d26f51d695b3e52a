"""Vision Mamba from published and own checkpoints: every key must find its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.vision.pretrained import checked, unwrapped
from mamba_apps.vision.vim_tokens import Grid, resize_position_embedding

if TYPE_CHECKING:
    from mamba_apps.vision.vim_model import Vim


def adapt_checkpoint(checkpoint: Mapping[str, Any], model: Vim) -> dict[str, Tensor]:
    """Return a state dict for ``model`` from a checkpoint of the reference, or from one of ours.

    Learned positions of another grid are interpolated by the model's ``pos_resize``.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape, or the grid of the positions is not known.
    """
    ours = {
        name.replace(".mixer.gamma", ".layer_scale.gamma"): tensor
        for name, tensor in unwrapped(checkpoint, "module.").items()
        # The reference stores its rotary positions, which we compute.
        if not name.startswith("rope.")
    }
    if model.pos_embed is not None and "pos_embed" in ours and ours["pos_embed"].shape != model.pos_embed.shape:
        found = ours["pos_embed"]
        old = _learned_grid(model, found.shape[1] - model.layout.count)
        ours["pos_embed"] = resize_position_embedding(found, model.layout, old, model.grid, model.pos_resize)
    return checked(ours, model)


def _learned_grid(model: Vim, patches: int) -> Grid:
    """Return the grid of a checkpoint's positions: that of the image size its configuration names, or a square."""
    height, width = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 0, 0))[1:]
    tall, wide = model.patch_embed.patch_size
    if height >= tall and width >= wide:
        grid = model.patch_embed.grid((height, width))
        if math.prod(grid) == patches:
            return grid
    edge = math.isqrt(max(patches, 0))
    if edge * edge != patches or edge == 0:
        raise UserError(
            f"the checkpoint's pos_embed has {patches} patches, which are no square grid",
            "name its own image size: pretrained_cfg_overlay={'input_size': (3, height, width)}",
        )
    return edge, edge
