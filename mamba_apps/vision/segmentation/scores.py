"""How well masks agree: intersection over union of each class, from a confusion matrix over all pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from mamba_apps.vision.segmentation.augment import IGNORED


class MaskScores(MulticlassConfusionMatrix):
    """Intersection over union over all labelled pixels of all pictures.

    Args:
        labels: Names of the classes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(len(labels), ignore_index=IGNORED, validate_args=False)
        self.labels = list(labels)

    def scores(self) -> dict[str, Tensor]:
        """Return "miou" (the mean over classes that occur), "accuracy", and "iou_<label>" of each that occurs."""
        matrix = self.compute().double()
        iou = intersection_over_union(matrix)
        occurs = ~iou.isnan()
        found = {"miou": iou[occurs].mean(), "accuracy": matrix.trace() / matrix.sum()}
        for label, value, there in zip(self.labels, iou, occurs, strict=True):
            if there:
                found[f"iou_{label.replace(' ', '_')}"] = value
        return found


def intersection_over_union(matrix_KK: Tensor) -> Tensor:
    """Return the IoU (K,) of each class from a confusion matrix; NaN for one that is neither true nor predicted."""
    matrix = matrix_KK.double()
    both = matrix.diagonal()
    return both / (matrix.sum(0) + matrix.sum(1) - both)


def mask_iou(predicted_HW: Tensor, truth_HW: Tensor, classes: int) -> float:
    """Return the mean IoU of one picture over the classes that occur in it; NaN where nothing is labelled."""
    known = truth_HW != IGNORED
    pairs = truth_HW[known].long() * classes + predicted_HW[known].long()
    matrix = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    return float(intersection_over_union(matrix).nanmean())
