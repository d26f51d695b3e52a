"""How well sounds are told: accuracy where each has one class; mAP, mAUC and d' where it may have several.

Dimensions in names: N clips, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multilabel_auroc,
    multilabel_average_precision,
)

_log = logging.getLogger(__name__)
_SHOWN = 3


class ClipScores(Metric):
    """Gathers the probabilities of all clips; its scores are by name.

    Args:
        classes: The classes' names.
        multilabel: Whether a clip may have several.
    """

    probabilities: list[Tensor]
    targets: list[Tensor]
    full_state_update = False

    def __init__(self, classes: Sequence[str], *, multilabel: bool) -> None:
        super().__init__()
        self.classes, self.multilabel = list(classes), multilabel
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self._said = False

    def update(self, probability_NK: Tensor, target_N: Tensor) -> None:
        """Take clips in: their probabilities, and their classes (N,) or the numbers (N, K) of a multi-label set."""
        self.probabilities.append(probability_NK.detach())
        self.targets.append(target_N.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name.

        Accuracies and mAP are in per cent. Classes that no clip has, or each, cannot be ranked: they are left out of
        the means, and the log says how many.
        """
        probability_NK, target_N = _joined(self.probabilities), _joined(self.targets)
        return self._ranking(probability_NK, target_N) if self.multilabel else _accuracies(probability_NK, target_N)

    def _ranking(self, probability_NK: Tensor, target_NK: Tensor) -> dict[str, Tensor]:
        positive_NK = target_NK > 0.5
        found_K = positive_NK.sum(dim=0)
        usable_K = (found_K > 0) & (found_K < len(positive_NK))
        self._say(usable_K)
        count = int(usable_K.sum())
        if count == 0:
            nothing = probability_NK.new_zeros(())
            return {"map": nothing, "mauc": nothing, "d_prime": nothing, "scored_classes": nothing}
        # One label more than one class: torchmetrics asks for two at least.
        column = [*usable_K.nonzero()[:, 0].tolist()]
        column = column if count > 1 else column * 2
        chosen, truth = probability_NK[:, column], positive_NK[:, column].long()
        precision = multilabel_average_precision(chosen, truth, num_labels=len(column), average="macro")
        area = multilabel_auroc(chosen, truth, num_labels=len(column), average="macro")
        return {
            "map": 100 * precision,
            "mauc": area,
            "d_prime": d_prime(area),
            "scored_classes": probability_NK.new_tensor(count),
        }

    def _say(self, usable_K: Tensor) -> None:
        left = [name for name, usable in zip(self.classes, usable_K.tolist(), strict=True) if not usable]
        if left and not self._said:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            _log.warning(
                "%d of %d classes have no clip here, or all of them, and are left out of the scores: %s%s",
                len(left),
                len(self.classes),
                ", ".join(left[:_SHOWN]),
                more,
            )
            self._said = True


def per_class(probability_NK: Tensor, target_N: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return scores (K,) of each class by name, NaN where there is nothing to score, the leading one first.

    Recall and precision where each clip has one class; average precision and the area under the ROC curve where it may
    have several. "clips" counts those of the class.
    """
    classes = probability_NK.shape[1]
    truth_NK = one_hot(target_N, classes) > 0.5
    clips_K = truth_NK.sum(dim=0).double()
    if target_N.dim() == 1:
        taken_NK = F.one_hot(probability_NK.argmax(dim=1), classes).bool()
        right_K = (taken_NK & truth_NK).sum(dim=0).double()
        found = {"recall": right_K / clips_K, "precision": right_K / taken_NK.sum(dim=0), "clips": clips_K}
        return {name: value.numpy() for name, value in found.items()}
    usable = ((clips_K > 0) & (clips_K < len(truth_NK))).nonzero()[:, 0].tolist()
    scored = {name: torch.full((classes,), math.nan, dtype=torch.float64) for name in ("average precision", "AUC")}
    for number in usable:
        column_N, truth_N = probability_NK[:, number], truth_NK[:, number].long()
        scored["average precision"][number] = float(binary_average_precision(column_N, truth_N))
        scored["AUC"][number] = float(binary_auroc(column_N, truth_N))
    return {name: value.numpy() for name, value in {**scored, "clips": clips_K}.items()}


def d_prime(area: Tensor) -> Tensor:
    """Return the distance of two Gaussians, in standard deviations, that would be told apart so well."""
    # An area of 1 is infinitely far, which no file can hold.
    clamped = area.double().clamp(1e-9, 1 - 1e-9)
    return (math.sqrt(2) * torch.special.ndtri(clamped)).to(area.dtype)


def clip_loss(probability_NK: Tensor, target_N: Tensor, *, binary: bool) -> Tensor:
    """Return the cross-entropy of the clips' probabilities: over the classes, or class by class where ``binary``."""
    if binary:
        return F.binary_cross_entropy(probability_NK, one_hot(target_N, probability_NK.shape[1]))
    return F.nll_loss(probability_NK.clamp(min=1e-12).log(), target_N)


def one_hot(target_N: Tensor, classes: int) -> Tensor:
    """Return targets as numbers (N, K), whichever way they are given."""
    return target_N if target_N.dim() == 2 else F.one_hot(target_N, classes).float()


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)


def _accuracies(probability_NK: Tensor, target_N: Tensor) -> dict[str, Tensor]:
    classes = probability_NK.shape[1]
    order_NK = probability_NK.topk(min(5, classes), dim=1).indices == target_N[:, None]
    tops = {"accuracy": 1, "top5": 5} if classes > 5 else {"accuracy": 1}
    return {name: 100 * order_NK[:, :k].any(dim=1).float().mean() for name, k in tops.items()}
