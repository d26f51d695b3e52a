"""How well a mask agrees with the truth: Dice, normalised surface Dice and the 95th percentile of surface distances.

A surface is what a label's erosion by one voxel takes away. Distances are Euclidean, in the spacing's unit (mm),
between the surfaces' voxels, both ways; each voxel of a surface counts once, whatever its share of the surface's area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1.0


@dataclass(frozen=True)
class LabelScore:
    """A label's scores in one case.

    Args:
        dice: In [0, 1]; NaN where the label is neither in the truth nor in the mask, like the other two.
        nsd: The part of both surfaces that lies within the tolerance of the other, in [0, 1].
        hd95: The larger of the two directions' 95th percentiles; the volume's diagonal where one surface is missing.
        true_voxels: How many voxels it has in the truth ...
        found_voxels: ... and in the mask.
    """

    dice: float
    nsd: float
    hd95: float
    true_voxels: int
    found_voxels: int


def score_label(
    found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float = TOLERANCE
) -> LabelScore:
    """Return the scores of one label.

    Args:
        found: Where the mask has it, bool.
        truth: Where it truly is, bool, of the same shape.
        spacing: Of the voxels along each axis.
        tolerance: Up to which distance surfaces agree, in the spacing's unit.
    """
    sizes = int(truth.sum()), int(found.sum())
    if not any(sizes):
        return LabelScore(np.nan, np.nan, np.nan, 0, 0)
    dice = 2 * int((truth & found).sum()) / sum(sizes)
    if not all(sizes):
        diagonal = float(np.linalg.norm(np.asarray(truth.shape) * np.asarray(spacing)))
        return LabelScore(dice, 0.0, diagonal, *sizes)
    # a flat picture has a surface in its plane alone
    sides = [step for step, side in zip(spacing, truth.shape, strict=True) if side > 1]
    found, truth = found.squeeze(), truth.squeeze()
    box = _bounding_box(truth | found)
    surfaces = [_surface(mask[box]) for mask in (truth, found)]
    distances = [_distances(surfaces[a], surfaces[b], sides) for a, b in ((0, 1), (1, 0))]
    near = sum(int((distance <= tolerance).sum()) for distance in distances)
    hd95 = max(float(np.percentile(distance, 95)) for distance in distances)
    return LabelScore(dice, near / sum(map(len, distances)), hd95, *sizes)


def score_case(
    found: np.ndarray,
    truth: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    ignored: int | None = None,
) -> dict[str, LabelScore]:
    """Return the scores of each label of one case.

    Args:
        found: The mask.
        truth: The true mask.
        labels: The values of the labels to score.
        spacing: Of the voxels along each axis.
        tolerance: Up to which distance surfaces agree.
        ignored: The value of true voxels that count nowhere.
    """
    if ignored is not None:
        found = np.where(truth == ignored, 0, found)
    return {name: score_label(found == value, truth == value, spacing, tolerance) for name, value in labels.items()}


def mean_scores(cases: Sequence[Mapping[str, LabelScore]]) -> dict[str, float]:
    """Return each score's mean over the cases for each label, and the mean of these over the labels.

    Args:
        cases: For each case, its labels' scores; those that are NaN count in no mean.

    Returns:
        dice, nsd and hd95, and dice_<label>, nsd_<label>, hd95_<label> of every label that occurs.
    """
    means: dict[str, float] = {}
    for kind in ("dice", "nsd", "hd95"):
        found = {}
        for label in cases[0] if cases else ():
            values = np.array([getattr(case[label], kind) for case in cases])
            if not np.isnan(values).all():
                found[label] = float(np.nanmean(values))
        if found:
            means[kind] = float(np.mean(list(found.values())))
        means.update({f"{kind}_{label}": value for label, value in found.items()})
    return means


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def _distances(surface: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance of each voxel of a surface to the nearest of another."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~other, sampling=tuple(spacing))[surface])
