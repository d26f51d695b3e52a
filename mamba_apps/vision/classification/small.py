"""Small images that all fit in memory: decoded once, augmented in whole batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from mamba_apps.vision.classification.augment import BatchAugment
from mamba_apps.vision.classification.data import ImageData
from mamba_apps.vision.classification.sources import ImageSource
from mamba_datasets.cores import usable_cores

# Images that a thread reads at a time.
_BLOCK = 256


class SmallImageData(ImageData):
    """Images of classes that are small enough to keep all of them in memory (CIFAR-10: 180 MB).

    Files are read once, at the first use of their part. No process of its own is needed to load batches, and one GPU is
    kept busy at tens of thousands of images a second.

    Args:
        root: As in `ImageData`.
        dataset: As in `ImageData`.
        train: As in `ImageData`.
        val: As in `ImageData`.
        test: As in `ImageData`.
        leave_out: As in `ImageData`.
        size: Height and width that models see, and images are kept in.
        batch_size: Images a training batch, on each device.
        eval_batch_size: Images a batch of validation and test.
        shift: Pixels that a training image moves at most, each way.
        hflip: The probability of a left-right flip.
        distort: From 0 to 1, the strength of random rotation, shear, zoom and colour.
        distorted: The probability that an image's shape is distorted, and that its colours are.
        mirror: Whether what enters at the edges of a moved image mirrors it; else it is black.
        cutout: The side of a square that is blanked in training images, in pixels; 0 for none.
        erase: The probability that a rectangle is replaced by noise.
        interpolation: How images of another size are resized.
        crop_pct: The part of a resized image that is kept.
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
        size: int = 32,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        shift: int = 0,
        hflip: float = 0.5,
        distort: float = 0.0,
        distorted: float = 1.0,
        mirror: bool = False,
        cutout: int = 0,
        erase: float = 0.0,
        interpolation: str = "bicubic",
        crop_pct: float = 1.0,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__(
            root,
            dataset=dataset,
            train=train,
            val=val,
            test=test,
            leave_out=leave_out,
            size=size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=0,
            erase=erase,
            interpolation=interpolation,
            crop_pct=crop_pct,
            mean=mean,
            std=std,
        )
        self._augment = BatchAugment(
            shift=shift, hflip=hflip, distort=distort, distorted=distorted, mirror=mirror, cutout=cutout
        )

    def _augment_batch(self, x_BCHW: Tensor) -> Tensor:
        return self._augment(x_BCHW)

    def _augmented(self, images: ImageSource) -> Dataset[Any]:
        return self._plain(images)

    def _plain(self, images: ImageSource) -> Dataset[Any]:
        return InMemory(images, self.preprocessing.transform())

    def _loading(self) -> dict[str, Any]:
        return {"collate_fn": _as_is, "pin_memory": torch.cuda.is_available()}


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Images as one tensor of bytes, from which whole batches are taken at once.

    Args:
        images: The images, all of which are read now.
        transform: From an image to bytes (3, H, W).
    """

    def __init__(self, images: ImageSource, transform: Callable[[Image.Image], Tensor]) -> None:
        def read(numbers: range) -> tuple[Tensor, list[int]]:
            found = [images[number] for number in numbers]
            return torch.stack([transform(image) for image, _ in found]), [label for _, label in found]

        blocks = [range(len(images))[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
        with ThreadPoolExecutor(min(16, usable_cores())) as pool:  # decoders leave Python's lock
            found = list(pool.map(read, blocks))
        self.images_NCHW = torch.cat([images_NCHW for images_NCHW, _ in found])
        self.labels_N = torch.tensor([label for _, labels in found for label in labels])

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images_NCHW[index], self.labels_N[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images_NCHW[chosen], self.labels_N[chosen]


def _as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
