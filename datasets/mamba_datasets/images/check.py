"""The check of class folders of images, for the readers' registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mamba_datasets.images.matching import fits_pairs
from mamba_datasets.images.read import IMAGE, SUFFIXES
from mamba_datasets.images.survey import describe, inspect_image
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Report
from mamba_datasets.survey import check_classes
from mamba_datasets.tree import holds
from mamba_datasets.volumes.raw import fits_raw


def _fits(folder: Path) -> bool:
    return holds(IMAGE, folder) and not fits_pairs(folder) and not fits_raw(folder)


@register_reader("images", SUFFIXES, _fits)
def check_images(path: Path | str, *, classes: Sequence[str] | None = None) -> Report:
    """Check a folder that has a folder a class, or splits that do, or images only; every image is decoded.

    Args:
        path: The folder, or a single image.
        classes: The classes, where they are fixed; None takes the sorted folders, those of the training split for all.

    Returns:
        The report: every broken file, what is wrong with the folders, and notes on classes, sizes, modes and copies.
    """
    return check_classes(path, "images", IMAGE, inspect_image, describe, classes)
