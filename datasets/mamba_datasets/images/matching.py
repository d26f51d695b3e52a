"""Pairs of an image and its mask: found by their names, and read as one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mamba_datasets.errors import DataError
from mamba_datasets.images.masks import MaskRules, read_mask
from mamba_datasets.images.read import IMAGE, REPLACE, read_image
from mamba_datasets.report import Collector
from mamba_datasets.tree import SPLITS, files_below, folders_in, holds, split_folder, within

MASK_FOLDERS = ("masks", "labels", "annotations")


def fits_pairs(folder: Path) -> bool:
    """Tell at a glance whether a folder holds images and masks."""
    bases = [folder, *(folder / name for name in SPLITS.intersection(folders_in(folder)))]
    paired = any((base / "images").is_dir() and any((base / name).is_dir() for name in MASK_FOLDERS) for base in bases)
    return paired and holds(IMAGE, folder)


def splits_of(root: str | Path, images: str | Path = "images") -> list[str | None]:
    """Return the splits of a folder of images and masks; [None] where there is none."""
    outer = [name for name in folders_in(root) if name in SPLITS and os.path.isdir(os.path.join(root, name, images))]
    image_folder = os.path.join(root, images)
    inner = folders_in(image_folder) if os.path.isdir(image_folder) else []
    return [*(outer or (inner if SPLITS.issuperset(inner) else []))] or [None]


def find_pairs(
    root: str | Path,
    sink: Collector,
    *,
    split: str | None = None,
    images: str | Path = "images",
    masks: str | Path | None = None,
    left_out: frozenset[str] = frozenset(),
) -> list[tuple[str, str]]:
    """Find the images of a folder and the mask of each.

    Args:
        root: The folder of the whole data set, which links must not leave.
        sink: Takes what is wrong.
        split: The split's folder, either within the root or within both the images' and the masks' folder.
        images: The images' folder within the root.
        masks: The masks' folder within the root; None takes the one of `MASK_FOLDERS` that exists.
        left_out: Paths to pass over, with their partners.

    Returns:
        The pairs, sorted.

    Raises:
        DataError: There are no such folders.
    """
    image_folder, mask_folder = _folders(root, split, images, masks)
    found_images = _by_stem(image_folder, root, sink, left_out)
    found_masks = _by_stem(mask_folder, root, sink, left_out)
    dropped = {stem for folder in (image_folder, mask_folder) for stem in _stems(left_out, folder)}
    pairs = []
    for stem in sorted((found_images.keys() | found_masks.keys()) - dropped):
        image, mask = found_images.get(stem), found_masks.get(stem)
        if image is not None and mask is not None:
            pairs.append((image, mask))
        elif image is not None:
            sink.add("mask", f"{mask_folder} has none of this name", "add it, or leave out the image", image)
        else:
            sink.add("image", f"{image_folder} has none of this name", "add it, or leave out the mask", mask)
    if not pairs and not sink.findings:
        sink.add("layout", f"{image_folder} holds no image", "fill it", root)
    return pairs


def read_pair(image_path: str, mask_path: str, rules: MaskRules) -> tuple[Image.Image, np.ndarray]:
    """Read an image and its mask.

    Args:
        image_path: The image.
        mask_path: Its mask.
        rules: What the mask's values mean.

    Returns:
        The RGB image, and the class numbers, int64 (H, W).

    Raises:
        DataError: One of them is broken, or their sizes differ.
    """
    image, mask_HW = read_image(image_path), read_mask(mask_path, rules)
    check_sizes(image_path, image.size, mask_path, mask_HW)
    return image, mask_HW


def check_sizes(image_path: str, size: tuple[int, int], mask_path: str, mask_HW: np.ndarray) -> None:
    """Raise a `DataError` unless a mask has its image's width and height."""
    height, width = mask_HW.shape
    if size != (width, height):
        expected = f"expected {size[0]}x{size[1]} as in {image_path}, found {width}x{height}"
        raise DataError(mask_path, "size", expected, REPLACE)


def _folders(root: str | Path, split: str | None, images: str | Path, masks: str | Path | None) -> tuple[str, str]:
    """Return the folders of the images and the masks of a split."""
    base: str | Path = root
    if split is not None and split in folders_in(root):
        base, split = split_folder(root, split), None
    image_folder = os.path.join(base, images)
    if not os.path.isdir(image_folder):
        inside = ", ".join(folders_in(base)) or "none"
        raise DataError(base, "layout", f"expected a folder {str(images)!r}, found {inside}", "name it: images=...")
    mask_folder = os.path.join(base, _mask_folder(base) if masks is None else masks)
    if not os.path.isdir(mask_folder):
        raise DataError(base, "layout", f"there is no folder {str(masks)!r}", "name it: masks=...")
    if split is not None:
        return split_folder(image_folder, split), split_folder(mask_folder, split)
    if (inner := folders_in(image_folder)) and SPLITS.issuperset(inner):
        raise DataError(image_folder, "layout", f"holds splits ({', '.join(inner)})", "name one: split=...")
    return within(image_folder, root), within(mask_folder, root)


def _mask_folder(base: str | Path) -> str:
    found = [name for name in MASK_FOLDERS if name in folders_in(base)]
    if len(found) != 1:
        expected = f"expected a folder of masks ({' or '.join(MASK_FOLDERS)}), found {' and '.join(found) or 'none'}"
        raise DataError(base, "layout", expected, "name it: masks=...")
    return found[0]


def _by_stem(folder: str, root: str | Path, sink: Collector, left_out: frozenset[str]) -> dict[str, str]:
    """Return the images of a folder by their path in it without the ending."""
    files: dict[str, str] = {}
    for path in files_below(IMAGE, folder, root, sink, left_out):
        stem = _stem(path, folder)
        if stem in files:
            sink.add("name", f"its partner is ambiguous: {files[stem]} has this name too", "rename or remove one", path)
        files.setdefault(stem, path)
    return files


def _stems(paths: Iterable[str], folder: str) -> set[str]:
    inside = os.path.join(folder, "")
    return {_stem(path, folder) for path in paths if path.startswith(inside) and IMAGE.names(path)}


def _stem(path: str, folder: str) -> str:
    return os.path.splitext(os.path.relpath(path, folder))[0]
