"""Labelled images for training, validation and test, augmented by timm image by image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm.data
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mamba_apps.errors import UserError
from mamba_apps.training import ResumableLoader
from mamba_apps.vision.classification.preprocessing import Preprocessing, Transform, as_bytes
from mamba_apps.vision.classification.sources import ImageSource, hold_back, open_images

Part = str | float | None


class ImageData(pl.LightningDataModule):
    """Images of classes, from a folder or one of timm's data sets.

    Images are decoded, cropped and augmented one by one in processes of their own, travel as bytes, and are normalised
    on the device. A broken image stops the run with its path.

    Args:
        root: A folder with a folder a class, or a folder of such parts; or the name of a sample, "digits".
        dataset: Instead of folders, a data set by timm's name ("torch/cifar10", "hfds/org/name") kept in ``root``.
        train: The training part, a folder in ``root``; None where ``root`` itself holds the classes.
        val: The validation part: a folder, or a number in (0, 1), that part of the training images held back (always
            the same ones); None for none.
        test: The test part, likewise.
        leave_out: A list of broken files to leave out, as `mamba-apps check` writes it.
        size: Height and width that models see.
        batch_size: Images a training batch, on each device; a rest that fills none is left out of the epoch.
        repeats: How often an image comes in an epoch, each time augmented anew, mostly on different devices (repeated
            augmentation, arXiv 1902.05509); an epoch is as long as ever, and has that many times fewer of the images.
        eval_batch_size: Images a batch of validation and test.
        workers: Processes that load data; 0 loads in the training process.
        scale: The part of an image's area that a random crop takes, least and most.
        hflip: The probability of a left-right flip.
        color_jitter: The strength of random brightness, contrast and saturation; unused with ``auto_augment``.
        auto_augment: timm's policy, such as "rand-m9-mstd0.5-inc1" (RandAugment).
        erase: The probability that a rectangle is replaced by noise.
        interpolation: How images are resized.
        crop_pct: The part of the resized image that validation's centre crop takes.
        mean: Of the channels, with values in [0, 1].
        std: Likewise.

    Raises:
        UserError: If a setting is out of range.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        dataset: str | None = None,
        train: str | None = "train",
        val: float | str | None = "val",
        test: float | str | None = None,
        leave_out: str | None = None,
        size: int = 224,
        batch_size: int = 64,
        repeats: int = 1,
        eval_batch_size: int = 128,
        workers: int = 4,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        erase: float = 0.0,
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "repeats": repeats}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"{name} is {count}", "give at least 1")
        held_back = [part for part in (val, test) if isinstance(part, float)]
        if any(not 0 < part < 1 for part in held_back) or sum(held_back) >= 1:
            raise UserError(f"val is {val}, test is {test}", "hold back parts in (0, 1) that leave something to learn")
        for name, probability in (("erase", erase), ("hflip", hflip)):
            if not 0 <= probability <= 1:
                raise UserError(f"{name} is {probability}", "give a probability in [0, 1]")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale is {tuple(scale)}", "give the least and the most of the area, in (0, 1]")
        for name, number in (("workers", workers), ("color_jitter", color_jitter)):
            if number < 0:
                raise UserError(f"{name} is {number}", "give 0 for none, or more")
        self.root, self.dataset, self.leave_out = root, dataset, leave_out
        self.train_part, self.val_part, self.test_part = train, val, test
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.erase, self.repeats = erase, repeats
        self.preprocessing = Preprocessing(size, interpolation, crop_pct, mean, std)
        self._augmentation: dict[str, Any] = {
            "scale": scale,
            "hflip": hflip,
            "color_jitter": color_jitter or None,
            "auto_augment": auto_augment,
            "interpolation": interpolation,
            "mean": mean,  # what policies fill the outside with
        }
        try:
            self._random_transform()
        except (AssertionError, LookupError, ValueError):
            what = f"auto_augment is {auto_augment!r}, no policy of timm's"
            raise UserError(what, "give one such as rand-m9-mstd0.5-inc1") from None

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes in the order of their numbers."""
        return self._source.classes

    @cached_property
    def train(self) -> Dataset[Any]:
        """The training images."""
        return self._augmented(_Some(self._source, self._shares["train"]))

    @cached_property
    def val(self) -> Dataset[Any]:
        """The validation images."""
        return self._plain(self._part("val", self.val_part))

    @cached_property
    def test(self) -> Dataset[Any]:
        """The test images."""
        return self._plain(self._part("test", self.test_part))

    def describe(self) -> str:
        """Return one line on the data."""
        name = self.dataset or Path(str(self.root)).resolve().name
        size = self.preprocessing.size
        count = len(self._shares["train"])
        return f"{name}: {count:,} training images, {len(self.classes)} classes, {size} px"

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, in an order that follows the run's seed and can be resumed anywhere."""
        count = len(self.train)  # type: ignore[arg-type]
        # Lightning asks for them once the run is seeded: all models of one seed see the same images in one order.
        return ResumableLoader(
            self.train,
            min(self.batch_size, count),
            shuffle=True,
            seed=torch.initial_seed() % 2**32,
            drop_last=True,
            repeats=self.repeats,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation batches; none where there is no validation part."""
        return self._loader(self.val) if self.val_part is not None else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches; none where there is no test part."""
        return self._loader(self.test) if self.test_part is not None else []

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test batches."""
        return self.test_dataloader()

    def predicted_names(self) -> list[str]:
        """Return the files of the images that `predict_dataloader` gives, in its order; none where it has no files."""
        if self.test_part is None:
            return []
        return [str(path) for path in getattr(self._part("test", self.test_part), "paths", [])]

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Turn bytes into a model's input, on the device; training's batches are augmented."""
        x_BCHW, labels_B = batch[0].float(), batch[1]
        training = self.trainer is not None and self.trainer.training
        if training:
            x_BCHW = self._augment_batch(x_BCHW)
        x_BCHW = self.preprocessing.normalise(x_BCHW)
        if training and self.erase:
            x_BCHW = RandomErasing(self.erase, mode="pixel", device=x_BCHW.device)(x_BCHW)
        return x_BCHW, labels_B

    def _augment_batch(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW

    def _augmented(self, images: ImageSource) -> Dataset[Any]:
        return _Transformed(images, self._random_transform())

    def _random_transform(self) -> Transform:
        crop = timm.data.create_transform(
            self.preprocessing.size, is_training=True, use_prefetcher=True, **self._augmentation
        )
        return as_bytes(crop)

    def _plain(self, images: ImageSource) -> Dataset[Any]:
        return _Transformed(images, self.preprocessing.transform())

    @cached_property
    def _source(self) -> ImageSource:
        """The images that training's come from, with those that are held back."""
        return self._open(self.train_part)

    @cached_property
    def _shares(self) -> dict[str, list[int]]:
        """The indices of training's images and of those that are held back from them."""
        rest, found = list(range(len(self._source))), {}
        for name, part in (("test", self.test_part), ("val", self.val_part)):
            if isinstance(part, float):
                # as a part of all, whatever was held back before it
                share = part * len(self._source) / len(rest)
                kept, held = hold_back(len(rest), share)
                found[name] = [rest[index] for index in held]
                rest = [rest[index] for index in kept]
        return {**found, "train": rest}

    def _part(self, name: str, part: Part) -> ImageSource:
        if part is None:
            raise UserError(f"there is no {name} part", f"give {name}, a folder or the part to hold back")
        if isinstance(part, float):
            return _Some(self._source, self._shares[name])
        return self._open(part, self.classes)

    def _open(self, split: str | None, classes: Sequence[str] | None = None) -> ImageSource:
        return open_images(self.root, split, dataset=self.dataset, classes=classes, leave_out=self.leave_out)

    def _loader(self, images: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(images, batch_size=self.eval_batch_size, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


class _Some:
    """Some images of a source."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.classes = source.classes
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._source[self._indices[index]]

    @property
    def paths(self) -> list[str]:
        found = getattr(self._source, "paths", None)
        return [] if found is None else [str(found[index]) for index in self._indices]


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Images as bytes (3, H, W), with their classes."""

    def __init__(self, images: ImageSource, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label
