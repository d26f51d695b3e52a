"""Dice and cross-entropy over the outputs of a deeply supervised network, as nnU-Net trains (Isensee et al. 2021).

Dimensions in names: B batch, K classes, then the spatial axes, two or three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NOBODY = -1
"""A label that no voxel has, where a data set ignores none."""
_SMOOTH = 1e-5


def dice_cross_entropy(
    scores_BK: Tensor, labels_B: Tensor, *, over_batch: bool, dice: float = 1.0, ignored: int = NOBODY
) -> Tensor:
    """Return the cross-entropy plus ``dice`` times the soft Dice loss of all classes but the first, in float32.

    Args:
        scores_BK: Class scores (B, K, ...).
        labels_B: True classes (B, ...), int64.
        over_batch: Whether a class's Dice is one of the whole batch, as for 2-D networks, or the mean over its samples.
        dice: Weight of the Dice loss.
        ignored: The label of voxels that count nowhere.
    """
    scores = scores_BK.float()
    known_B = labels_B != ignored
    loss = F.cross_entropy(scores, labels_B, ignore_index=ignored, reduction="sum") / known_B.sum().clamp(min=1)
    if not dice:
        return loss
    chance = scores.softmax(dim=1)[:, 1:]
    if ignored != NOBODY:
        chance = chance * known_B[:, None]
    truth = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels_B.where(known_B, 0)[:, None], True)[:, 1:]
    over = tuple(range(2, scores.dim()))
    both, sizes = (chance * truth).sum(over), chance.sum(over) + truth.sum(over)
    if over_batch:
        both, sizes = both.sum(0), sizes.sum(0)
    return loss + dice * (1 - ((2 * both + _SMOOTH) / (sizes + _SMOOTH)).mean())


def supervision_weights(outputs: int) -> list[float]:
    """Return the weight of each output, the finest first: halved at each step, none for the coarsest, 1 in all."""
    raw = [0.5**place for place in range(outputs)]
    if outputs > 1:
        raw[-1] = 0.0
    return [weight / sum(raw) for weight in raw]


def supervised_loss(
    outputs: Tensor | Sequence[Tensor],
    labels_B: Tensor,
    *,
    over_batch: bool,
    dice: float = 1.0,
    ignored: int = NOBODY,
) -> Tensor:
    """Return the weighted loss of all outputs, each against the labels at its own resolution.

    Args:
        outputs: Class scores (B, K, ...), or a list of them, the finest first.
        labels_B: True classes (B, ...), int64, at the finest resolution.
        over_batch: As in `dice_cross_entropy`.
        dice: Weight of the Dice loss.
        ignored: The label of voxels that count nowhere.
    """
    scores = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = torch.zeros((), device=labels_B.device)
    for weight, score in zip(supervision_weights(len(scores)), scores, strict=True):
        # also where the weight is 0, for every parameter has a gradient where several processes train
        target = _resized(labels_B, score.shape[2:])
        loss = loss + weight * dice_cross_entropy(score, target, over_batch=over_batch, dice=dice, ignored=ignored)
    return loss


def _resized(labels_B: Tensor, size: Sequence[int]) -> Tensor:
    """Return the labels at a coarser resolution, each voxel that of the nearest one."""
    if tuple(labels_B.shape[1:]) == tuple(size):
        return labels_B
    return F.interpolate(labels_B[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()
