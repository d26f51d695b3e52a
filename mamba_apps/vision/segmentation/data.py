"""Pictures and their masks for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from mamba_apps.errors import UserError, no_data
from mamba_apps.training import ResumableLoader
from mamba_apps.vision.segmentation.augment import IGNORED, training_transform
from mamba_datasets.images import ImagePairs


class SegmentationData(pl.LightningDataModule):
    """Pictures with a mask each, read by `ImagePairs`.

    A part is a folder of its own where its split is named. Else the test part is every ``test_every``-th picture by
    name, beginning with the first, and the validation part every ``val_every``-th of those that are left.

    Args:
        root: The folder; see `ImagePairs` for its layouts. None is refused when its pictures are first asked for.
        labels: Names of the classes in the order of their numbers; the background is one of them.
        train_split: The folder of the training part; None where there are no such folders.
        val_split: The folder of the validation part; None takes it from the training part.
        test_split: The folder of the test part; None takes it from the training part.
        test_every: One picture of so many is for the test.
        val_every: One picture of so many of the rest is for validation.
        images: The pictures' folder within the root.
        masks: The masks' folder within the root; None takes the one of masks, labels, annotations that exists.
        foreground: Whether every value of a mask above 0 is class 1, as where masks number instances.
        reduce_zero_label: Whether 0 is unlabelled and classes count from 1, as in ADE20K.
        leave_out: The list of broken files that `mamba-apps check` wrote; None leaves out none.
        crop: Height and width that a model reads, multiples of 32.
        scale: The least and the greatest factor by which training pictures are resized before they are cropped.
        short_side: Bring the shorter side to this length first, at test too; None keeps the size.
        most: The largest share of one class in a training crop, where it can be had; 1 takes any.
        vertical_flip: Whether to flip upside down too, for pictures without an up.
        turn: Whether to exchange rows and columns too, likewise: with both flips all quarter turns come about.
        photometric: Whether to change brightness, contrast and colour.
        batch_size: Crops a training batch, at least 2.
        workers: Processes that read.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        root: str | None,
        labels: Sequence[str],
        *,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        test_every: int = 5,
        val_every: int = 10,
        images: str = "images",
        masks: str | None = None,
        foreground: bool = False,
        reduce_zero_label: bool = False,
        leave_out: str | None = None,
        crop: tuple[int, int] = (512, 512),
        scale: tuple[float, float] = (0.5, 2.0),
        short_side: int | None = None,
        most: float = 1.0,
        vertical_flip: bool = False,
        turn: bool = False,
        photometric: bool = True,
        batch_size: int = 16,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if len(set(labels)) < len(labels):
            raise UserError("labels name a class twice", "give each class a name of its own")
        if foreground and len(labels) != 2:
            raise UserError(f"foreground makes 2 classes, labels has {len(labels)}", "name the background and it")
        for name, count in (("test_every", test_every), ("val_every", val_every), ("batch_size", batch_size)):
            if count < 2:
                raise UserError(f"{name} is {count}", "give at least 2")
        if workers < 0:
            raise UserError(f"workers is {workers}", "give 0 to read in the training process, or more")
        if short_side is not None and short_side < 1:
            raise UserError(f"short_side is {short_side}", "give a number of pixels")
        if not 0 < most <= 1:
            raise UserError(f"most is {most}", "give a share in (0, 1]")
        self.root, self.labels = root, list(labels)
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.test_every, self.val_every = test_every, val_every
        self.crop, self.short_side = (int(crop[0]), int(crop[1])), short_side
        self.batch_size, self.workers = batch_size, workers
        self._reading: dict[str, Any] = {
            "images": images,
            "masks": masks,
            "num_classes": len(labels),
            "ignore_index": IGNORED,
            "foreground": foreground,
            "reduce_zero_label": reduce_zero_label,
            "leave_out": leave_out,
        }
        self._transform = training_transform(
            self.crop,
            scale=scale,
            short_side=short_side,
            most=most,
            vertical_flip=vertical_flip,
            turn=turn,
            photometric=photometric,
        )

    @cached_property
    def train(self) -> MaskedPictures:
        """The training part, augmented."""
        return self._parts["train"]

    @cached_property
    def val(self) -> MaskedPictures:
        """The validation part."""
        return self._parts["val"]

    @cached_property
    def test(self) -> MaskedPictures:
        """The test part."""
        return self._parts["test"]

    def describe(self) -> str:
        """Return one line on the data."""
        sizes = ", ".join(f"{len(part)} {name}" for name, part in self._parts.items())
        return f"{Path(self._folder).name}: {sizes} pictures, {len(self.labels)} classes"

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches (B, 3, h, w) and (B, h, w), in an order and with crops that follow the seed."""
        if len(self.train) < self.batch_size:
            raise UserError(
                f"{self.root}: batch_size is {self.batch_size}, but there are {len(self.train)} training pictures",
                "give a smaller data.batch_size",
            )
        return ResumableLoader(
            self.train,
            self.batch_size,
            shuffle=True,
            seed=torch.initial_seed() % 2**32,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation pictures one by one, at their own size, each with its mask and number."""
        return DataLoader(self.val, num_workers=self.workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures one by one, at their own size, each with its mask and number."""
        return DataLoader(self.test, num_workers=self.workers)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        return self.test_dataloader()

    @property
    def _folder(self) -> str:
        if self.root is None:
            raise no_data("images", "name the folder of images and masks: --data.root DIR")
        return self.root

    @cached_property
    def _parts(self) -> dict[str, MaskedPictures]:
        pairs = ImagePairs(self._folder, split=self.splits["train"], **self._reading)
        left = list(range(len(pairs)))
        parts = {}
        for name, every in (("test", self.test_every), ("val", self.val_every)):
            if self.splits[name] is not None:
                own = ImagePairs(self._folder, split=self.splits[name], **self._reading)
                parts[name] = MaskedPictures(own, range(len(own)))
            else:
                parts[name] = MaskedPictures(pairs, left[::every])
                left = [number for place, number in enumerate(left) if place % every]
        return {"train": MaskedPictures(pairs, left, self._transform), "val": parts["val"], "test": parts["test"]}


class MaskedPictures(Dataset[tuple[Any, ...]]):
    """Some of the pairs: pictures (3, H, W), uint8, and masks (H, W), int64.

    Args:
        pairs: All pairs.
        numbers: Which of them.
        transform: Applied to both; a picture then comes without its number.
    """

    def __init__(self, pairs: ImagePairs, numbers: Sequence[int], transform: v2.Transform | None = None) -> None:
        self.pairs, self.numbers, self.transform = pairs, numbers, transform

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, int]:
        found, values_HW = self.pairs[self.numbers[index]]
        image, mask = tv_tensors.Image(found), tv_tensors.Mask(values_HW.astype(np.uint8))
        if self.transform is None:
            return image.as_subclass(Tensor), mask.as_subclass(Tensor).long(), index
        image, mask = self.transform(image, mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def name(self, index: int) -> str:
        """Return the file name of a picture, without its folder."""
        return Path(self.pairs.paths[self.numbers[index]][0]).name
