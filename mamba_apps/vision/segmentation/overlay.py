"""Masks as people look at them: colours, a mask laid over its picture, and picture, truth, prediction side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mamba_apps.training.files import make_directory
from mamba_apps.vision.segmentation.augment import IGNORED

_OPAQUE = 0.45
_GOLDEN = 0.618034  # multiples of it spread over the circle of hues without repeating
_MOST_NAMED = 12


def palette(classes: int) -> np.ndarray:
    """Return a colour a class (256, 3), uint8; class 0 is black and the unlabelled 255 is white."""
    colours = np.zeros((IGNORED + 1, 3))
    for number in range(1, classes):
        value = 1.0 if number % 2 else 0.75
        colours[number] = colorsys.hsv_to_rgb((0.06 + (number - 1) * _GOLDEN) % 1, 0.85, value)
    colours[IGNORED] = 1.0
    return (255 * colours).round().astype(np.uint8)


def mask_image(mask_HW: np.ndarray, classes: int) -> Image.Image:
    """Return a palette image whose pixel values are the classes (H, W), uint8."""
    image = Image.fromarray(mask_HW)
    image.putpalette(palette(classes).tobytes())
    return image


def overlay(image_HW3: np.ndarray, mask_HW: np.ndarray, classes: int) -> np.ndarray:
    """Return the picture (H, W, 3), uint8, with every class but the first laid over it in its colour."""
    colours = palette(classes)[mask_HW]
    mixed = (1 - _OPAQUE) * image_HW3 + _OPAQUE * colours
    return np.where((mask_HW > 0)[..., None], mixed.round().astype(np.uint8), image_HW3)


def side_by_side(
    path: Path,
    image_HW3: np.ndarray,
    truth_HW: np.ndarray,
    predicted_HW: np.ndarray,
    labels: Sequence[str],
    titles: Sequence[str],
) -> None:
    """Draw a picture, its truth and its prediction next to each other in a PNG.

    Args:
        path: The file.
        image_HW3: The picture, uint8.
        truth_HW: The true classes; 255 is unlabelled.
        predicted_HW: The predicted classes.
        labels: Names of the classes.
        titles: Words above each of the three.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes = len(labels)
    figure = Figure(figsize=(12, 12 * image_HW3.shape[0] / image_HW3.shape[1] / 3 + 0.8), layout="constrained")
    pictures = (image_HW3, overlay(image_HW3, truth_HW, classes), overlay(image_HW3, predicted_HW, classes))
    for axis, picture, title in zip(figure.subplots(1, 3), pictures, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    shown = [number for number in np.union1d(truth_HW, predicted_HW) if 0 < number < classes][:_MOST_NAMED]
    handles = [Patch(color=palette(classes)[number] / 255, label=labels[number]) for number in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    make_directory(path.parent, "folder of overlays")
    figure.savefig(path, dpi=120)
