"""Where labelled images come from: a folder of classes, a sample that the package ships, or a data set of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from mamba_apps.errors import UserError, no_data
from mamba_datasets.images import read_image
from mamba_datasets.samples import load_digits

SAMPLES = ("digits",)
# Which of a source's images are held back must not change with a run's seed: one data set, one split.
_SPLIT_SEED = 0


@runtime_checkable
class ImageSource(Protocol):
    """Images with the numbers of their classes, by index."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes; a class is its index."""

    def __len__(self) -> int:
        """Return how many images there are."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an RGB image and its class."""


def open_images(
    root: str | None,
    split: str | None,
    *,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    leave_out: str | None = None,
) -> ImageSource:
    """Open a source of images; nothing is decoded yet.

    Args:
        root: A folder with a folder a class, or the name of a sample.
        split: A part of it, the name of a folder inside; None for all of it.
        dataset: Instead of a folder's layout, a data set by timm's name, such as "torch/cifar10" or "hfds/org/name";
            ``root`` is then where it is kept.
        classes: The classes, in order, that must be found; None takes the folders' names.
        leave_out: A list of broken files to leave out, as `mamba-apps check` writes it.

    Raises:
        UserError: If there is no such source.
        DataError: If no folder is named, or it does not hold what it should.
    """
    if dataset is not None:
        return TimmImages(dataset, root, split)
    if root is None:
        raise no_data("images", "name their folder: --data.root DIR (a folder a class)")
    if root in SAMPLES and not Path(root).exists():
        if split is not None:
            raise UserError(f"the sample {root!r} has no part {split!r}", "give train null, and val and test as 0.1")
        return Digits()

    from mamba_datasets.images import ImageFolder
    from mamba_datasets.tree import SPLITS, folders_in

    if split is None and (parts := folders_in(root)) and SPLITS.issuperset(parts):
        raise UserError(f"{root} holds parts, no classes: {', '.join(parts)}", "name them: --data.train, --data.val")
    return ImageFolder(root, split=split, classes=classes, leave_out=leave_out)


def hold_back(count: int, part: float) -> tuple[list[int], list[int]]:
    """Split indices at random, always in the same way, into those that are kept and a part that is held back.

    Args:
        count: How many there are.
        part: Which part to hold back, in (0, 1); at least one index is.

    Raises:
        UserError: If the part is out of range or nothing would be kept.
    """
    if not 0 < part < 1:
        raise UserError(f"a part of {part} of the images cannot be held back", "give a number in (0, 1), such as 0.1")
    held = max(1, round(count * part))
    if held >= count:
        raise UserError(f"holding {part:g} of {count} images back leaves none", "give more images, or a smaller part")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    return sorted(order[held:]), sorted(order[:held])


class Digits:
    """The handwritten digits that the package ships, white on black."""

    def __init__(self) -> None:
        self.classes = [str(digit) for digit in range(10)]
        self._images, self._digits = load_digits()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.asarray(self._images[index])).convert("RGB"), int(self._digits[index])


class TimmImages:
    """A data set by timm's name; an image that cannot be read is an error, not the next image.

    Args:
        name: Such as "torch/cifar10" or "hfds/org/name".
        root: Where it is kept.
        split: The part of it, as it is called there.

    Raises:
        UserError: If timm cannot open it, or reads it as a stream.
    """

    def __init__(self, name: str, root: str | None, split: str | None) -> None:
        from timm.data import create_dataset

        try:
            found: Any = create_dataset(name, root=root, split=split or "train")
        except (ImportError, FileNotFoundError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"timm cannot open the data set {name!r}: {' '.join(str(error).split()) or type(error).__name__}",
                "check its name and root; a data set that is not there is not downloaded",
            ) from error
        if not hasattr(found, "__getitem__") or not hasattr(found, "__len__"):
            raise UserError(f"the data set {name!r} is read as a stream", "use one that is read by index (torch, hfds)")
        # timm's ImageDataset goes on to the next image where one cannot be read; its reader does not
        self._reader = getattr(found, "reader", None)
        if hasattr(found, "loader"):
            # torchvision's folders open their files with this
            found.loader = read_image
        self._found = found
        self._name = name
        self.classes = self._class_names()

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self._reader is None:
            image, label = self._found[index]
            return image.convert("RGB"), int(label)

        from mamba_datasets.images.read import load_image, to_mode

        file, label, *_ = self._reader[index]
        name = getattr(file, "name", f"{self._name}, image {index}")
        with file:
            return to_mode(load_image(file, name), name), int(label)

    def _class_names(self) -> list[str]:
        known = getattr(self._found, "classes", None)
        if known is None:
            numbers = getattr(self._reader, "class_to_idx", None)
            known = None if not numbers else sorted(numbers, key=numbers.get)
        if not known:
            raise UserError(f"the data set {self._name!r} does not name its classes", "save it as a folder a class")
        return [str(name) for name in known]
