"""NIfTI files: the header checked against the file's size before a voxel is read, the data read to its end."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.volumes.volume import MAX_VOXELS, check_affine

SUFFIXES = (".nii", ".nii.gz")
# deflate cannot shrink anything further than this
_DEFLATE = 1032
_AGAIN = "copy it from its source again"
_BLOCK = 1 << 20
# Of a voxel: header rounding stays below, what shows in a viewer is above.
_SHIFT = 0.05
# The shortest header, and how much nibabel looks at to tell what a file is.
_LEAST_HEADER, _HEAD = 348, 1024


def nibabel_for(path: str | Path) -> ModuleType:
    """Import nibabel, or raise a `DataError` that says how to install it."""
    try:
        import nibabel
    except ImportError:
        raise DataError(path, "NIfTI", "nibabel is not installed", "pip install 'mamba-apps[medical]'") from None
    return nibabel


@dataclass(frozen=True)
class Layout:
    """What a checked header says.

    Args:
        header: nibabel's.
        affine: (4, 4), from the file's voxel indices to the world.
        shape: Voxels along each of the file's axes, without trailing axes of one.
        dtype: Of a stored voxel.
        offset: The byte at which voxels begin.
        slope: What stored numbers are multiplied by.
        inter: What is added then.
        notes: What other programs may read otherwise.
    """

    header: Any
    affine: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    notes: tuple[str, ...] = ()


def read_header(path: str | Path) -> Layout:
    """Read and check a header, and no voxel.

    Args:
        path: The file.

    Returns:
        What it says.

    Raises:
        DataError: It is no NIfTI file, claims more than the file can hold, or has other than 2 or 3 axes.
    """
    nibabel = nibabel_for(path)
    if not os.path.isfile(path):
        raise DataError(path, "file", "no such file", "check the path")
    if os.path.getsize(path) == 0:
        raise DataError(path, "file", "is empty (0 bytes)", _AGAIN)
    try:
        with _opened(path) as file:
            head = file.read(_HEAD)
        if len(head) < _LEAST_HEADER:
            raise EOFError(f"it ends after {len(head)} bytes")
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(path, "header", f"is truncated or damaged ({_one_line(error)})", _AGAIN) from None
    try:
        image = nibabel.load(path)
        affine = np.asarray(image.affine, np.float64)
        # the image's own header forgets where voxels begin and how they are scaled
        stored = image.dataobj
        shape = tuple(int(size) for size in stored.shape)
        layout = Layout(image.header, affine, shape, stored.dtype, int(stored.offset), stored.slope, stored.inter)
    except Exception as error:  # a parser fed damaged bytes raises anything
        raise DataError(path, "header", f"is no NIfTI header ({_one_line(error)})", _AGAIN) from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise DataError(path, "header", f"expected NIfTI, found {type(image).__name__}", "save it as .nii.gz")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        remedy = "save each of its volumes as a file of its own: CASE_0000.nii.gz, CASE_0001.nii.gz, …"
        raise DataError(path, "shape", f"expected 2 or 3 axes, found {len(shape)}: {shape}", remedy)
    if layout.dtype.kind not in "iufb":
        raise DataError(path, "datatype", f"expected one number a voxel, found {layout.dtype}", "split its channels")
    _check_claim(path, shape, layout.dtype.itemsize, layout.offset)
    check_affine(str(path), affine, len(shape))
    return replace(layout, shape=shape, notes=_disagreement(image.header, affine, shape))


def read_voxels(path: str | Path, layout: Layout) -> np.ndarray:
    """Read the values of a file whose header was checked, and the file to its end.

    Args:
        path: The file.
        layout: From `read_header`.

    Returns:
        The file's axes in reverse order; the stored numbers, or float32 where the header scales them.

    Raises:
        DataError: The file is truncated or damaged.
    """
    values = np.empty(layout.shape[::-1], layout.dtype)
    try:
        with _opened(path) as file:
            file.seek(layout.offset)
            there = _fill(values, file)
            if there == values.nbytes:
                _drain(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, "voxels", f"is truncated or damaged ({_one_line(error)})", _AGAIN) from None
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {_one_line(error)}", "check the disk and permissions") from None
    if there < values.nbytes:
        found = f"is truncated: its header announces {values.nbytes} bytes, {there} are there"
        raise DataError(path, "voxels", found, _AGAIN)
    if layout.slope == 1 and layout.inter == 0:
        return values.astype(layout.dtype.newbyteorder("="), copy=False)
    scaled = values.astype(np.float32)
    scaled *= np.float32(layout.slope)
    scaled += np.float32(layout.inter)
    return scaled


def write_nifti(file: BinaryIO, name: str, values: np.ndarray, affine: np.ndarray, header: Any) -> None:
    """Write a mask or an image of whole numbers into an open file.

    Args:
        file: The file.
        name: Its name, whose ending says whether it is compressed.
        values: Integers, axes in reverse order of the file's.
        affine: From the file's voxel indices to the world.
        header: What to take over (units, codes of the affines, description); None starts afresh.
    """
    nibabel = nibabel_for(name)
    two = header is not None and int(header["sizeof_hdr"]) == 540
    kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    kept = None if header is None else header.copy()
    if kept is not None:
        kept.set_data_dtype(values.dtype)
        kept["cal_min"] = kept["cal_max"] = 0  # the display range of the image, not of its mask
    image = kind(values.T, affine, kept)
    if name.lower().endswith(".gz"):
        # neither name nor time of writing: the same mask is the same file
        with gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0) as packed:
            image.to_stream(packed)
    else:
        image.to_stream(file)


def _disagreement(header: Any, affine: np.ndarray, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Tell whether a header places its volume in two ways: some viewers take the one, some the other."""
    try:
        other = header.get_qform(coded=True)[0]
    except Exception:  # a quaternion that is none: the sform was taken, as by all who can
        return ()
    if other is None or not int(header["sform_code"]):
        return ()
    corner = np.append(np.array([*shape, 1, 1][:3]) - 1, 1)
    shift = max(np.abs((other - affine) @ place).max() for place in (corner, np.array([0, 0, 0, 1])))
    if shift <= _SHIFT * np.linalg.norm(affine[:3, : len(shape)], axis=0).min():
        return ()
    return ("its sform and qform place it differently; the sform is taken",)


def _check_claim(path: str | Path, shape: tuple[int, ...], itemsize: int, offset: int) -> None:
    """Refuse a header that claims more than its file can hold."""
    if min(shape) < 1:
        raise DataError(path, "shape", f"expected voxels along every axis, found {shape}", _AGAIN)
    count = 1
    for size in shape:
        count *= size
    if count > MAX_VOXELS:
        found = f"at most {MAX_VOXELS:,} voxels are read, its header claims {count:,}"
        raise DataError(path, "header", found, "crop or resample it, or repair its header")
    packed = str(path).lower().endswith(".gz")
    most = os.path.getsize(path) * (_DEFLATE if packed else 1) - offset
    if count * itemsize > most:
        found = f"is truncated: its header claims {count:,} voxels, the file can hold {max(0, most // itemsize):,}"
        raise DataError(path, "voxels", found, _AGAIN)


def _opened(path: str | Path) -> BinaryIO:
    return gzip.open(path, "rb") if str(path).lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _fill(values: np.ndarray, file: BinaryIO) -> int:
    """Read values from a file, and return how many bytes were there."""
    view, there = values.reshape(-1).view(np.uint8).data, 0
    while there < len(view):
        count = file.readinto(view[there : there + _BLOCK])  # type: ignore[attr-defined]
        if not count:
            break
        there += count
    return there


def _drain(file: BinaryIO) -> None:
    """Read to the end, where a compressed file has its checksum."""
    while file.read(_BLOCK):
        pass


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
