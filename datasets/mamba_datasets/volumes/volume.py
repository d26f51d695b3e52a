"""A volume in memory, and whether two lie on the same grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mamba_datasets.errors import DataError

# 16 GiB as float32; a header that claims more is refused before anything is allocated.
MAX_VOXELS = 2**32
# Header rounding stays far below this share of a voxel, a shift that shows in a mask far above.
_SHIFT = 0.05
_SPACING = 1e-3
_DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or mask of 2 or 3 axes with its place in the world.

    Args:
        array: (C, z, y, x) or (C, y, x): the file's axes in reverse order. float32 for images, integers for masks.
        affine: (4, 4), from the file's voxel indices (x, y, z) to millimetres right, anterior, superior.
        path: Where it was read.
        header: nibabel's header of a NIfTI file, which masks written like it take over.
        notes: What was done openly, such as a spacing that nobody stated.
    """

    array: np.ndarray
    affine: np.ndarray
    path: str
    header: Any = None
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the array, without channels."""
        return tuple(self.array.shape[1:])

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.array.shape[0])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each axis of the array."""
        steps = np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0)
        return tuple(float(step) for step in steps[::-1])

    @property
    def orientation(self) -> str:
        """The direction in which each of the file's axes runs, such as "RAS" or "LPS"."""
        return orientation_of(self.affine, len(self.shape))


def orientation_of(affine: np.ndarray, axes: int) -> str:
    """Return the direction nearest to each of the file's axes, such as "RAS"."""
    return "".join(_DIRECTIONS[world][forwards] for world, forwards in nearest_axes(affine, axes))


def nearest_axes(affine: np.ndarray, axes: int) -> list[tuple[int, bool]]:
    """Match a file's axes to the world's, each world axis at most once, the clearest matches first.

    Args:
        affine: From the file's voxel indices to the world.
        axes: How many axes the file has.

    Returns:
        For each of the file's axes, the world's axis (0 right, 1 anterior, 2 superior) and whether it runs along it.
    """
    steps = affine[:3, :axes] / np.linalg.norm(affine[:3, :axes], axis=0)
    # the nearest rotation: oblique or sheared axes are matched together, none twice
    left, _, right = np.linalg.svd(steps, full_matrices=False)
    rotation = left @ right
    remaining = np.abs(rotation)
    found: dict[int, tuple[int, bool]] = {}
    for _ in range(axes):
        world, axis = (int(place) for place in np.unravel_index(np.argmax(remaining), remaining.shape))
        found[axis] = (world, bool(rotation[world, axis] > 0))
        remaining[world, :] = remaining[:, axis] = -1
    return [found[axis] for axis in range(axes)]


def check_affine(path: str, affine: np.ndarray, axes: int) -> None:
    """Raise a `DataError` unless an affine gives every axis a direction of its own."""
    steps = affine[:3, :axes]
    if not np.isfinite(affine).all() or (np.linalg.norm(steps, axis=0) < 1e-9).any():
        found = f"expected finite steps along {axes} axes, found {steps.T.tolist()}"
        raise DataError(path, "affine", found, "repair the header's sform, qform or pixdim")
    directions = steps / np.linalg.norm(steps, axis=0)
    if np.linalg.svd(directions, compute_uv=False)[-1] < 1e-3:
        raise DataError(path, "affine", "two of its axes run the same way", "repair the header's sform or qform")


def mismatch(volume: Volume, reference: Volume) -> DataError | None:
    """Tell how a volume's grid differs from another's.

    Args:
        volume: The volume.
        reference: What it must line up with.

    Returns:
        An error that names the first difference of shape, spacing, orientation and affine; None where there is none.
    """
    other = reference.path
    remedy = "save it on the grid of that file"
    if volume.shape != reference.shape:
        expected = f"expected {_times(reference.shape)} voxels as in {other}, found {_times(volume.shape)}"
        return DataError(volume.path, "shape", expected, remedy)
    if not np.allclose(volume.spacing, reference.spacing, rtol=_SPACING, atol=0):
        expected = f"expected {_millimetres(reference.spacing)} as in {other}, found {_millimetres(volume.spacing)}"
        return DataError(volume.path, "spacing", expected, remedy)
    if volume.orientation != reference.orientation:
        expected = f"expected {reference.orientation} as in {other}, found {volume.orientation}"
        return DataError(volume.path, "orientation", expected, remedy)
    corners = np.stack(np.meshgrid(*([0, size - 1] for size in volume.shape[::-1]), indexing="ij"), -1)
    corners = corners.reshape(-1, len(volume.shape))
    difference = volume.affine - reference.affine
    shifts = np.linalg.norm(corners @ difference[:3, : corners.shape[1]].T + difference[:3, 3], axis=1)
    if shifts.max() > _SHIFT * min(reference.spacing):
        expected = f"expected the world coordinates of {other}, found a corner {shifts.max():.3g} mm away"
        return DataError(volume.path, "affine", expected, remedy)
    return None


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1]))


def _millimetres(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{step:.4g}" for step in spacing[::-1]) + " mm"
