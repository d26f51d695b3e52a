"""Images for segmentation: an image and a mask of the same name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mamba_datasets.broken import read_broken
from mamba_datasets.images.masks import MaskRules
from mamba_datasets.images.matching import find_pairs, read_pair
from mamba_datasets.report import Collector


class ImagePairs(Dataset[tuple[Any, Any]]):
    """Images and their masks, as `(image, mask)` in a fixed order: RGB, and class numbers as an int64 array (H, W).

    Layouts, where `masks` may also be called labels or annotations: `images/*` and `masks/*`, each with a folder a
    split (as in ADE20K) or not, or `SPLIT/images/*` and `SPLIT/masks/*`. A mask has the image's name but for the
    ending; folders within belong to the name. Reading stops at a broken pair with its path.

    Args:
        root: The folder.
        split: The name of the split's folder, such as "training".
        images: The images' folder within the root.
        masks: The masks' folder within the root; None takes the one of masks, labels, annotations that exists.
        num_classes: Mask values are 0 to this, exclusive; None does not check them.
        ignore_index: The value of pixels that belong to no class.
        foreground: Take every value above 0 as class 1, such as the numbers of instances.
        reduce_zero_label: Take 0 as `ignore_index` and count classes from 1, as in ADE20K.
        leave_out: The list of broken files that `mamba-apps check ROOT --write-broken FILE` wrote; pairs with one of
            these are passed over.
        transform: Applied to image and mask together: `transform(image, mask)`.

    Attributes:
        paths: The images' and masks' files, in pairs.

    Raises:
        DataError: The folder is not laid out like this, a partner is missing, or a name is there twice.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        images: str | Path = "images",
        masks: str | Path | None = None,
        num_classes: int | None = None,
        ignore_index: int = 255,
        foreground: bool = False,
        reduce_zero_label: bool = False,
        leave_out: str | Path | None = None,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> None:
        self.rules = MaskRules(num_classes, ignore_index, foreground, reduce_zero_label)
        left_out = read_broken(leave_out, root)
        self.paths = find_pairs(root, Collector(root), split=split, images=images, masks=masks, left_out=left_out)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, mask_HW = read_pair(*self.paths[index], self.rules)
        return (image, mask_HW) if self.transform is None else self.transform(image, mask_HW)
