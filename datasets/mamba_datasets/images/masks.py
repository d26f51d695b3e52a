"""One mask: an image whose values are class numbers, read without changing any."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.images.read import LEAVE_OUT, load_image, read_bytes

_SHOWN = 8


@dataclass(frozen=True)
class MaskRules:
    """What the values of a mask mean.

    Args:
        num_classes: Values are 0 to this, exclusive; None does not check them.
        ignore_index: The value of pixels that belong to no class.
        foreground: Take every value above 0 as class 1, such as the numbers of instances.
        reduce_zero_label: Take 0 as `ignore_index` and count classes from 1, as in ADE20K.
    """

    num_classes: int | None = None
    ignore_index: int = 255
    foreground: bool = False
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if self.foreground and self.reduce_zero_label:
            raise DataError("mask rules", "reduce_zero_label", "contradicts foreground", "choose one of them")
        if self.foreground and self.num_classes not in (None, 2):
            raise DataError("mask rules", "num_classes", f"is {self.num_classes}, but foreground has 2", "leave it out")

    def apply(self, values_HW: np.ndarray, name: str | Path) -> np.ndarray:
        """Turn the values of a file into class numbers.

        Args:
            values_HW: The values.
            name: The file's name, for errors.

        Returns:
            Class numbers and `ignore_index`, int64 (H, W).

        Raises:
            DataError: A value is outside the classes.
        """
        classes_HW = values_HW.astype(np.int64)
        if self.foreground:
            return (classes_HW > 0).astype(np.int64)
        if self.reduce_zero_label:
            ignored_HW = (classes_HW == 0) | (classes_HW == self.ignore_index)
            classes_HW = np.where(ignored_HW, self.ignore_index, classes_HW - 1)
        if self.num_classes is not None:
            wrong_HW = ((classes_HW < 0) | (classes_HW >= self.num_classes)) & (classes_HW != self.ignore_index)
            if wrong_HW.any():
                row, column = (int(place[0]) for place in np.nonzero(wrong_HW))
                found = np.unique(values_HW[wrong_HW])
                shown = ", ".join(map(str, found[:_SHOWN])) + (", …" if len(found) > _SHOWN else "")
                first = int(self.reduce_zero_label)
                known = f"{first} to {self.num_classes - 1 + first} or {self.ignore_index} (ignored)"
                remedy = "set num_classes or ignore_index, or foreground=True where values number instances"
                raise DataError(name, f"row {row}, column {column}", f"expected {known}, found {shown}", remedy)
        return classes_HW


def read_mask(path: str | Path, rules: MaskRules | None = None) -> np.ndarray:
    """Read a mask.

    Palette images give the palette's indices, two-valued ones 0 and 1, 16-bit ones their values unscaled.

    Args:
        path: A file of one channel; not a JPEG, which changes values.
        rules: What its values mean; None returns them unchecked.

    Returns:
        Class numbers, int64 (H, W).

    Raises:
        DataError: The file is broken, has colours or is a JPEG, or a value is outside the classes.
    """
    image = load_image(io.BytesIO(read_bytes(path)), path)
    if image.format in ("JPEG", "MPO"):
        raise DataError(path, "format", "a JPEG changes the values of a mask", "save the original mask as PNG")
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        expected = f"expected one channel of class numbers, found {image.mode}"
        raise DataError(path, "mode", expected, f"save the class numbers as a PNG of mode L, or {LEAVE_OUT}")
    return (rules or MaskRules()).apply(np.asarray(image), path)
