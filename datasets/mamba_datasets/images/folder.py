"""Images for classification: a folder a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mamba_datasets.broken import read_broken
from mamba_datasets.images.read import IMAGE, read_image
from mamba_datasets.report import Collector
from mamba_datasets.tree import scan_classes, split_folder


class ImageFolder(Dataset[tuple[Any, int]]):
    """Images sorted into a folder a class, as `(image, class index)` in a fixed order.

    Folders within a class folder belong to the class; names that begin with a dot are passed over. Reading stops at a
    broken image with its path; none is replaced by another. `mamba_datasets.images.read` says how each kind of image
    becomes RGB.

    Args:
        root: Holds a folder a class, or a folder a split that does.
        split: The name of the split's folder, such as "train".
        classes: The classes in the order of their indices, for a split that must agree with another; None takes the
            sorted names of the folders.
        leave_out: The list of broken files that `mamba-apps check ROOT --write-broken FILE` wrote; these are passed
            over.
        transform: Applied to each RGB image.

    Attributes:
        classes: The names; a class is its index.
        paths: The files.
        targets: The class of each file.

    Raises:
        DataError: The folder is not laid out like this: a class is empty, missing or alone, a file is no image by
            its name, a link leaves the folder. The first such thing is named; `mamba-apps check` lists all.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        leave_out: str | Path | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        folder = root if split is None else split_folder(root, split)
        left_out = read_broken(leave_out, root)
        tree = scan_classes(IMAGE, folder, root, Collector(root), classes=classes, left_out=left_out)
        self.classes, self.paths, self.targets = tree.classes, tree.paths, tree.targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.paths[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]
