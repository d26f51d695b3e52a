"""What happens to a patch before it is learned from: nnU-Net's augmentations at its strengths (Isensee et al. 2021).

All numbers come from one generator. MONAI does the work; what is written here is how far to rotate and scale, and how
much of the volume a rotated patch needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mamba_apps.errors import UserError

_INSTALL = "pip install 'mamba-apps[medical]'"
_ROTATED, _SCALED = 0.2, 0.2  # of all patches
_SCALES = (0.7, 1.4)
_TILT, _FLAT_TILT, _TURN = np.deg2rad([30.0, 15.0, 180.0])
_ANISOTROPIC = 3.0  # a patch that is longer than so many times its shortest side is turned in its plane alone
_SQUARE = 1.5
_MAX_SEED = 2**32


class Augmentation:
    """Rotate, scale, add noise, blur, brighten, change contrast, coarsen, bend the gamma and mirror, each by chance.

    Args:
        patch: The sides of a patch, two or three.
        mirror: The axes along which patches may be mirrored.
        resample: Whether to rotate and scale at all.
        intensity: Whether to change values at all.
    """

    def __init__(
        self, patch: Sequence[int], *, mirror: Sequence[int], resample: bool = True, intensity: bool = True
    ) -> None:
        self.patch, self.mirror = tuple(patch), tuple(mirror)
        self.resample = resample
        self._values = _values(len(patch)) if intensity else None
        self._in_plane = len(patch) == 3 and max(patch) > _ANISOTROPIC * min(patch)

    def __call__(
        self, crop: Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]], random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return an augmented patch (C, ...), float32, and its labels (...), int16.

        Args:
            crop: Returns image (C, ...) and labels (...) of the given size around the patch's centre.
            random: Where all that is drawn comes from.
        """
        matrix = self._matrix(random) if self.resample else None
        if matrix is None:
            image, labels = (torch.from_numpy(part) for part in crop(self.patch))
        else:
            image, labels = self._resampled(crop, matrix)
        if self._values is not None:
            self._values.set_random_state(int(random.integers(_MAX_SEED)))
            image = self._values(image.float()).as_subclass(Tensor)
        flip = [axis - len(self.patch) for axis in self.mirror if random.random() < 0.5]
        return image.flip(flip).float(), labels.flip(flip).to(torch.int16)

    def _matrix(self, random: np.random.Generator) -> np.ndarray | None:
        """Draw the matrix from a patch's coordinates, counted from its centre, to the volume's; None for none."""
        from monai.transforms.utils import create_rotate, create_scale

        dim = len(self.patch)
        rotates, scales = random.random() < _ROTATED, random.random() < _SCALED
        if not rotates and not scales:
            return None
        matrix = np.eye(dim + 1)
        if rotates:
            if dim == 2:
                most = _TURN if max(self.patch) <= _SQUARE * min(self.patch) else _FLAT_TILT
                angles: Any = float(random.uniform(-most, most))
            elif self._in_plane:
                angles = [float(random.uniform(-_TURN, _TURN)), 0.0, 0.0]
            else:
                angles = random.uniform(-_TILT, _TILT, 3).tolist()
            matrix = matrix @ np.asarray(create_rotate(dim, angles))
        if scales:
            smaller = random.random() < 0.5
            scale = float(random.uniform(_SCALES[0], 1) if smaller else random.uniform(1, _SCALES[1]))
            matrix = matrix @ np.asarray(create_scale(dim, [1.0 if self._in_plane else scale, *[scale] * (dim - 1)]))
        return matrix

    def _resampled(
        self, crop: Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]], matrix: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        from monai.transforms import Affine

        reach = np.abs(matrix[:-1, :-1]) @ ((np.asarray(self.patch) - 1) / 2)
        # as even or odd as the patch, so that both have their centre at the same place; one voxel more to each side
        sides = [side + 2 * int(np.ceil(far - (side - 1) / 2 + 1)) for side, far in zip(self.patch, reach, strict=True)]
        if self._in_plane:
            sides[0] = self.patch[0]
        image, labels = crop(sides)
        resampled = []
        for part, mode in ((image, "bilinear"), (labels[None], "nearest")):
            affine = Affine(affine=matrix, spatial_size=self.patch, mode=mode, padding_mode="border", image_only=True)
            resampled.append(cast(Tensor, affine(torch.from_numpy(part).float())).as_subclass(Tensor))
        return resampled[0], resampled[1][0]


def _values(dim: int) -> Any:
    """Return the changes of values; made before processes are started, which then need not import MONAI each."""
    try:
        from monai import transforms as t
    except ImportError as error:
        raise UserError("patches are changed by MONAI, which is not installed", _INSTALL) from error

    upsample = "trilinear" if dim == 3 else "bilinear"
    return t.Compose(
        [
            t.RandGaussianNoise(prob=0.1, std=0.1),
            t.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            t.RandScaleIntensity(factors=0.25, prob=0.15),
            t.RandScaleIntensityFixedMean(factors=0.25, preserve_range=True, prob=0.15),
            t.RandSimulateLowResolution(prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=upsample),
            t.RandAdjustContrast(prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            t.RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )
