"""Published weights: Audio Mamba's, Vision Mamba's to start one from, AST's; every key must find its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from mamba_apps.audio.ast import AST
from mamba_apps.audio.audio_mamba import AudioMamba
from mamba_apps.errors import UserError
from mamba_apps.state_dicts import fitted
from mamba_apps.vision.pretrained import unwrapped
from mamba_apps.vision.vim_tokens import Grid, Place, TokenLayout, resize_position_embedding

_REMEDY = "give the model that these weights belong to: its size, variant, class token, classes and mel bands"
_THEIR_POSITIONS = "pos_embed.pos_embed"


def adapt_audio_mamba(checkpoint: Mapping[str, Any], model: AudioMamba) -> dict[str, Tensor]:
    """Return a state dict for ``model`` from a released checkpoint, or from one of ours.

    The released models keep the class token's position in front, wherever the token stands; here positions are in the
    order of the sequence. Those of clips of another length are interpolated.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape, or the model reads in another order.
    """
    ours = unwrapped(checkpoint, "module.")
    if _THEIR_POSITIONS in ours:
        if model.order != "frequency":
            raise UserError("Audio Mamba: the checkpoint reads band by band", 'give a model with order="frequency"')
        theirs_1LD = ours.pop(_THEIR_POSITIONS)
        count = model.layout.count
        ours["pos_embed"] = model.layout.insert(theirs_1LD[:, count:], theirs_1LD[:, :count])
    found = ours.get("pos_embed")
    if found is not None and model.pos_embed is not None and found.shape != model.pos_embed.shape:
        ours["pos_embed"] = resize_position_embedding(
            found, model.layout, _learned_grid(model, found.shape[1]), model.grid, "antialiased"
        )
    return fitted("Audio Mamba", ours, model.state_dict(), _REMEDY)


def adapt_vision_mamba(
    checkpoint: Mapping[str, Any],
    model: AudioMamba,
    grid: Grid | None = None,
    class_token: Place = "middle",  # noqa: S107  no secret
) -> dict[str, Tensor]:
    """Return a state dict for ``model`` from Vision Mamba's weights; the classifier stays as it is.

    The patches' projection is averaged over the image's colours and resized by the pseudo-inverse; positions are
    interpolated from the image's grid.

    Args:
        checkpoint: Vim's, released or ours.
        model: The model, of the same width and depth, and Bi-Bi as Vim is.
        grid: The image's patches along height and width; None for a square.
        class_token: Where the image's class token stands.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape, or the image's grid is not known.
    """
    upright = model.order == "frequency"
    ours = {name: x for name, x in unwrapped(checkpoint, "module.").items() if not name.startswith(("head.", "rope."))}
    ours |= {name: x for name, x in model.state_dict().items() if name.startswith("head.")}
    kernel = "patch_embed.proj.weight"
    if kernel in ours:
        height, width = model.patch_embed.patch_size
        size = [height, width] if upright else [width, height]
        weight = resample_patch_embed(ours[kernel].mean(dim=1, keepdim=True), size)
        ours[kernel] = weight if upright else weight.mT.contiguous()
    found_1LD = ours.pop("pos_embed", None)
    if model.pos_embed is not None and found_1LD is not None:
        layout = TokenLayout(class_token)
        old = grid or _square(found_1LD.shape[1] - layout.count)
        # Height is frequency and width is time; a model that reads time first has them the other way round.
        new = model.grid if upright else (model.grid[1], model.grid[0])
        resized_1LD = resize_position_embedding(found_1LD, layout, old, new, "antialiased")
        patch_1MD = layout.patches(resized_1LD)
        if not upright:
            patch_1MD = patch_1MD.unflatten(1, new).transpose(1, 2).flatten(1, 2)
        ours["pos_embed"] = model.layout.insert(patch_1MD, layout.class_tokens(resized_1LD))
    return fitted("Audio Mamba from Vision Mamba", ours, model.state_dict(), _REMEDY)


def adapt_transformer(checkpoint: Mapping[str, Any], model: AST) -> dict[str, Tensor]:
    """Return a state dict for ``model`` from a checkpoint of AST, published or ours.

    The published ones still carry the image classifiers of the ViT that they began as, which nothing uses. Positions of
    clips of another length are interpolated.

    Raises:
        UserError: If a key is missing, unexpected or of the wrong shape.
    """
    unused = ("v.head.", "v.head_dist.")
    ours = {name: x for name, x in unwrapped(checkpoint, "module.").items() if not name.startswith(unused)}
    found_1LD, prefix = ours.get("v.pos_embed"), model.v.num_prefix_tokens
    if found_1LD is not None and found_1LD.shape != model.v.pos_embed.shape:
        bands, frames = model.v.patch_embed.grid_size
        old = _grid(found_1LD.shape[1], prefix, bands)
        ours["v.pos_embed"] = resample_abs_pos_embed(
            found_1LD, [bands, frames], list(old), prefix, interpolation="bilinear"
        )
    return fitted("AST", ours, model.state_dict(), _REMEDY)


def _learned_grid(model: AudioMamba, length: int) -> Grid:
    """Return the grid of a checkpoint's positions: the model's bands, and as many frames as that makes."""
    upright = model.order == "frequency"
    grid = _grid(length, model.layout.count, model.grid[0 if upright else 1])
    return grid if upright else (grid[1], grid[0])


def _grid(length: int, tokens: int, bands: int) -> Grid:
    """Return how many bands and frames ``length`` positions are for, ``tokens`` of which are no patches."""
    patches = length - tokens
    if patches < 1 or patches % bands:
        raise UserError(f"the checkpoint has {length} positions, no whole number for {bands} bands", _REMEDY)
    return bands, patches // bands


def _square(patches: int) -> Grid:
    edge = math.isqrt(max(patches, 0))
    if edge * edge != patches or edge == 0:
        raise UserError(f"the checkpoint's pos_embed has {patches} patches, which are no square", "name its grid")
    return edge, edge
