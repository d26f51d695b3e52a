"""The patches that are learned from: drawn at random, a third of each batch on a labelled voxel, then augmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mamba_apps.medical.segmentation.augment import Augmentation
from mamba_datasets.volumes import Prepared
from mamba_datasets.volumes.patches import cut, place_patch


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """Random patches (C, ...), float32, and their labels (...), int16; a batch follows torch's random state alone.

    Args:
        cases: What they are cut from, with labels.
        patch: Their sides; two take slices of volumes.
        count: How many an epoch has.
        foreground: The part of a batch, its last patches, that is centred on a labelled voxel.
        augmentation: What happens to each.
    """

    def __init__(
        self, cases: Prepared, patch: Sequence[int], count: int, *, foreground: float, augmentation: Augmentation
    ) -> None:
        self.cases, self.patch, self.count = cases, tuple(patch), count
        self.foreground, self.augmentation = foreground, augmentation

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        random = np.random.default_rng(torch.randint(2**31, (4,)).tolist())
        anywhere = round(len(indices) * (1 - self.foreground))
        return [self._draw(random, foreground=place >= anywhere) for place in range(len(indices))]

    def _draw(self, random: np.random.Generator, *, foreground: bool) -> tuple[Tensor, Tensor]:
        case = self.cases[int(random.integers(len(self.cases)))]
        start, size = place_patch(case, self.patch, random, foreground=foreground)
        image, label = case.image, case.label
        flat = len(size) - len(self.patch)

        def crop(sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            wanted = (*size[:flat], *sides)
            corner = [first - (side - own) // 2 for first, side, own in zip(start, wanted, size, strict=True)]
            parts = cut(image, corner, wanted), cut(label[None], corner, wanted)[0]
            return (parts[0][:, 0], parts[1][0]) if flat else parts

        return self.augmentation(crop, random)
