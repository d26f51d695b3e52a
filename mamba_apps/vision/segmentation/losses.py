"""Losses of class scores against labels, over the labelled pixels alone.

Dimensions in names: B batch, K classes, H and W rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(scores_BKHW: Tensor, labels_BHW: Tensor, ignored: int) -> Tensor:
    """Return the mean cross-entropy over labelled pixels; 0 where none is."""
    total = F.cross_entropy(scores_BKHW.float(), labels_BHW, ignore_index=ignored, reduction="sum")
    return total / (labels_BHW != ignored).sum().clamp(min=1)


def dice(scores_BKHW: Tensor, labels_BHW: Tensor, ignored: int) -> Tensor:
    """Return 1 minus the Dice coefficient of soft labels over a batch, averaged over the classes that it holds."""
    known_B1HW = (labels_BHW != ignored)[:, None]
    chance = scores_BKHW.float().softmax(dim=1) * known_B1HW
    truth = torch.zeros_like(chance).scatter_(1, labels_BHW[:, None].masked_fill(~known_B1HW, 0), 1.0) * known_B1HW
    over = (0, 2, 3)
    sizes_K = truth.sum(over)
    dice_K = 2 * (chance * truth).sum(over) / (chance.sum(over) + sizes_K).clamp(min=1e-6)
    present_K = sizes_K > 0
    return ((1 - dice_K) * present_K).sum() / present_K.sum().clamp(min=1)
