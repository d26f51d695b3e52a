"""PNG, BMP and TIFF as volumes: pictures of one or three channels, TIFF pages as slices; a spacing may stand beside."""

from __future__ import annotations

import io
import json
import os
import re
from math import inf
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mamba_datasets.errors import DataError
from mamba_datasets.images.read import MAX_PIXELS, load_image, read_bytes
from mamba_datasets.volumes.json_files import read_json
from mamba_datasets.volumes.volume import MAX_VOXELS

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".png", ".bmp", *TIFF_SUFFIXES)
_CHANNEL = re.compile(r"_\d{4}$")
_GREY = ("L", "I", "F")


def read_picture(path: str | Path, *, mask: bool = False) -> np.ndarray:
    """Read a picture or a stack of TIFF pages.

    Values stay as stored: nothing is scaled, palettes give colours in an image and their indices in a mask.

    Args:
        path: The file.
        mask: Whether it holds labels.

    Returns:
        (C, y, x), or (1, z, y, x) for several pages.

    Raises:
        DataError: It is damaged, too large, or has a mode without a rule.
    """
    pages = _pages(path)
    arrays = [_values(page, path, mask) for page in pages]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(path, "pages", f"expected one size, found {sorted(shapes)}", "save pages of one size")
    if len(arrays) == 1:
        return arrays[0]
    if arrays[0].shape[0] != 1:
        raise DataError(path, "pages", "expected grey pages, found colours", "save one channel a file")
    return np.stack([array[0] for array in arrays])[None]


def spacing_beside(path: str | Path, axes: int) -> tuple[float, ...] | None:
    """Read the spacing that stands beside a TIFF file, as nnU-Net has it: `CASE.json` with {"spacing": [z, y, x]}.

    Args:
        path: The image (CASE_0000.tif) or its label (CASE.tif).
        axes: How many axes it has.

    Returns:
        The spacing along each of the array's axes; None where there is no such file.

    Raises:
        DataError: The file does not hold one.
    """
    beside = path_beside(path)
    if not os.path.isfile(beside):
        return None
    remedy = 'write it like {"spacing": [2.0, 0.5, 0.5]}, in the order z, y, x'
    steps = read_json(beside, remedy).get("spacing")
    numbers = isinstance(steps, list) and all(isinstance(step, (int, float)) for step in steps)
    if not isinstance(steps, list) or not numbers or len(steps) != axes or not all(0 < step < inf for step in steps):
        raise DataError(beside, "spacing", f"expected {axes} positive numbers, found {json.dumps(steps)}", remedy)
    return tuple(map(float, steps))


def path_beside(path: str | Path) -> str:
    """Return where the spacing of a TIFF file would stand."""
    stem = _CHANNEL.sub("", Path(path).name[: -len(Path(path).suffix)])
    return str(Path(path).with_name(f"{stem}.json"))


def check_axes(path: str | Path, axes: int) -> None:
    """Raise a `DataError` if a format, by the path's ending, cannot hold so many axes."""
    if axes == 3 and not str(path).lower().endswith(TIFF_SUFFIXES):
        raise DataError(path, "mask", "has 3 axes, this format 2", "name a .nii.gz or .tif file")


def write_picture(file: BinaryIO, name: str, mask: np.ndarray) -> None:
    """Write a mask of 8 or 16 bits into an open file, as PNG, BMP or TIFF by its name."""
    if mask.dtype not in (np.uint8, np.uint16) or (name.endswith(".bmp") and mask.dtype != np.uint8):
        raise DataError(name, "mask", f"{mask.dtype} does not fit this format", "name a .nii.gz or .tif file")
    pages = [Image.fromarray(page) for page in (mask if mask.ndim == 3 else mask[None])]
    # in memory first: writing several pages reads what was written
    content = io.BytesIO()
    if name.lower().endswith(TIFF_SUFFIXES):
        pages[0].save(content, "TIFF", compression="tiff_deflate", save_all=True, append_images=pages[1:])
    else:
        check_axes(name, mask.ndim)
        pages[0].save(content, "BMP" if name.lower().endswith(".bmp") else "PNG")
    file.write(content.getbuffer())


def _pages(path: str | Path) -> list[Image.Image]:
    content = read_bytes(path)
    if not str(path).lower().endswith(TIFF_SUFFIXES):
        return [load_image(io.BytesIO(content), path)]
    try:
        opened = Image.open(io.BytesIO(content), formats=("TIFF",))
        count = int(getattr(opened, "n_frames", 1))
    except Exception:  # the reader of images says what is wrong with it
        return [load_image(io.BytesIO(content), path)]
    if count == 1:
        _check_imagej(opened, path)
        return [load_image(io.BytesIO(content), path)]
    if count * opened.width * opened.height > MAX_VOXELS or opened.width * opened.height > MAX_PIXELS:
        raise DataError(path, "size", f"at most {MAX_VOXELS:,} voxels are read", "crop or resample it")
    pages = []
    try:
        for number in range(count):
            opened.seek(number)
            pages.append(opened.copy())
    except MemoryError:
        raise
    except Exception as error:  # a decoder fed damaged bytes raises anything
        found = f"is truncated or damaged ({' '.join(str(error).split())})"
        raise DataError(path, f"page {len(pages)}", found, "copy it from its source again") from None
    return pages


def _check_imagej(image: Image.Image, path: str | Path) -> None:
    """Refuse a stack that ImageJ wrote as one page, of which Pillow would read the first slice only."""
    description = str(image.tag_v2.get(270, "")) if hasattr(image, "tag_v2") else ""
    claim = re.search(r"^images=(\d+)", description, re.MULTILINE)
    if description.startswith("ImageJ") and claim and int(claim[1]) > 1:
        found = f"holds {claim[1]} slices in one page, as ImageJ writes large stacks"
        raise DataError(path, "pages", found, "save it as .nii.gz, or as TIFF with a page a slice")


def _values(image: Image.Image, path: str | Path, mask: bool) -> np.ndarray:
    """Return a page's values (C, y, x) as stored."""
    if mask and image.format in ("JPEG", "MPO"):
        raise DataError(path, "format", "a JPEG changes the values of a mask", "save the original mask as PNG")
    if image.mode == "P" and not mask:
        image = image.convert("RGB")
    if image.mode in ("1", "P", *_GREY) or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return (values.astype(np.uint8) if image.mode == "1" else values)[None]
    if image.mode == "RGB" and not mask:
        return np.moveaxis(np.asarray(image), -1, 0)
    expected = "one channel of label numbers" if mask else "grey or RGB"
    raise DataError(path, "mode", f"expected {expected}, found {image.mode}", "save it so, without transparency")
