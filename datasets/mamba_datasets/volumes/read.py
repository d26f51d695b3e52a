"""Volumes read and masks written, whatever the format; what cannot be trusted is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.files import write_whole
from mamba_datasets.volumes import nifti, pictures
from mamba_datasets.volumes.volume import Volume, mismatch

SUFFIXES = (*nifti.SUFFIXES, *pictures.SUFFIXES)
_SHOWN = 8


def ending_of(path: str | Path) -> str:
    """Return the ending by which a file's format goes, or raise a `DataError` that names the known ones."""
    name = Path(path).name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    known = " ".join(SUFFIXES)
    raise DataError(path, "format", f"knows {known}, found {''.join(Path(path).suffixes) or 'none'}", "save as .nii.gz")


def read_volume(path: str | Path) -> Volume:
    """Read an image.

    Args:
        path: NIfTI, PNG, BMP or TIFF.

    Returns:
        Its values as float32, unscaled but by the header's slope.

    Raises:
        DataError: It is truncated, damaged, larger than can be, of four axes, or holds NaN or infinite voxels.
    """
    volume = _read(path, mask=False)
    array = volume.array.astype(np.float32, copy=False)
    if volume.array.dtype.kind == "f":
        # an overflow on the way to float32 is refused with what was infinite before
        bad = ~np.isfinite(array)
        if bad.any():
            place = tuple(int(index) for index in np.argwhere(bad[0] if len(bad) == 1 else bad.any(0))[0][::-1])
            found = f"{int(bad.sum())} are NaN or infinite, the first at {place}"
            raise DataError(path, "voxels", found, "repair them, or leave the case out")
    return Volume(array, volume.affine, volume.path, volume.header, volume.notes)


def read_label(path: str | Path, values: Sequence[int] | None = None) -> Volume:
    """Read a mask.

    Args:
        path: NIfTI, PNG, BMP or TIFF of one channel; floating-point files may hold whole numbers.
        values: The labels it may hold; None checks nothing but that they are whole and not negative.

    Returns:
        Its labels in the smallest unsigned type that holds them.

    Raises:
        DataError: As `read_volume`, or a value is no label.
    """
    volume = _read(path, mask=True)
    stored = volume.array
    if stored.dtype.kind == "f":
        whole = np.isfinite(stored) & (stored == np.rint(stored))
        if not whole.all():
            _refuse(path, stored, ~whole, "whole numbers")
    low, high = (stored.min(), stored.max())
    if low < 0 or high > np.iinfo(np.uint32).max:
        _refuse(path, stored, (stored < 0) | (stored > np.iinfo(np.uint32).max), "labels from 0")
    if values is not None:
        known = np.isin(stored, np.asarray(values))
        if not known.all():
            _refuse(path, stored, ~known, f"the labels {', '.join(map(str, sorted(values)))}")
    labels = stored.astype(np.min_scalar_type(int(high)), copy=False)
    return Volume(labels, volume.affine, volume.path, volume.header, volume.notes)


def read_case(paths: Sequence[str | Path]) -> Volume:
    """Read an image whose channels are files of their own, or one file of all.

    Args:
        paths: The files in the channels' order.

    Returns:
        One volume with all channels, and the header of the first.

    Raises:
        DataError: As `read_volume`, or the files lie on different grids.
    """
    volumes = [read_volume(path) for path in paths]
    for other in volumes[1:]:
        error = mismatch(other, volumes[0])
        if error is not None:
            raise error
    if len(volumes) == 1:
        return volumes[0]
    first = volumes[0]
    array = np.concatenate([volume.array for volume in volumes])
    return Volume(array, first.affine, first.path, first.header, first.notes)


def check_mask_path(path: str | Path, like: Volume) -> None:
    """Raise a `DataError` if `write_mask` would refuse a path for what it ends in; for before the mask is made."""
    if ending_of(path) not in nifti.SUFFIXES:
        pictures.check_axes(path, len(like.shape))


def write_mask(path: str | Path, mask: np.ndarray, like: Volume) -> None:
    """Write a mask on the grid of a volume, whole or not at all; read again, it is equal to the bit.

    Args:
        path: NIfTI, PNG, BMP or TIFF by its ending.
        mask: Integers (*axes) in the order of the volume's array.
        like: The volume, whose affine and header it takes over.

    Raises:
        DataError: The mask has another shape or does not fit the format, or it cannot be written there: the disk is
            full, the folder missing. What was there before stays.
    """
    if mask.shape != like.shape:
        raise DataError(path, "mask", f"expected the shape {like.shape} of {like.path}, found {mask.shape}", "resample")
    if mask.dtype.kind not in "iub" or (mask.size and int(mask.min()) < 0):
        raise DataError(path, "mask", f"expected labels from 0, found {mask.dtype}", "give whole numbers from 0")
    ending = ending_of(path)
    if mask.dtype not in (np.uint8, np.uint16):
        mask = mask.astype(np.min_scalar_type(int(mask.max())) if mask.size else np.uint8)
    name = str(path)
    if ending in nifti.SUFFIXES:
        write_whole(path, lambda file: nifti.write_nifti(file, name, mask, like.affine, like.header))
    else:
        write_whole(path, lambda file: pictures.write_picture(file, name, mask))


def _read(path: str | Path, *, mask: bool) -> Volume:
    ending = ending_of(path)
    if ending in nifti.SUFFIXES:
        layout = nifti.read_header(path)
        return Volume(nifti.read_voxels(path, layout)[None], layout.affine, str(path), layout.header, layout.notes)
    array = pictures.read_picture(path, mask=mask)
    axes = array.ndim - 1
    notes: tuple[str, ...] = ()
    spacing = pictures.spacing_beside(path, axes) if ending in pictures.TIFF_SUFFIXES else None
    if spacing is None and axes == 3:
        notes = ("no spacing stands beside it: 1 is taken along every axis",)
    affine = np.eye(4)
    affine[range(axes), range(axes)] = (spacing or (1.0,) * axes)[::-1]
    return Volume(array, affine, str(path), None, notes)


def _refuse(path: str | Path, stored: np.ndarray, wrong: np.ndarray, expected: str) -> None:
    values = np.unique(stored[wrong])
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")
    place = tuple(int(index) for index in np.argwhere(wrong[0])[0][::-1])
    count = int(wrong.sum())
    found = f"expected {expected}, found {shown} in {count} voxel{'s' if count != 1 else ''}, the first at {place}"
    raise DataError(path, "labels", found, "correct the mask, or name the label in dataset.json")
