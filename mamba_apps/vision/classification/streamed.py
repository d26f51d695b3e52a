"""Images that are streamed from chunks, for sets like ImageNet: few large files, on a disk or at an address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mamba_apps.errors import UserError, no_data
from mamba_apps.vision.classification.data import ImageData, Part

if TYPE_CHECKING:
    from mamba_datasets.images import StreamingImages, StreamingLoader


class StreamedImageData(ImageData):
    """Images of classes in chunks that `mamba_datasets.images.optimize_folder` wrote, a folder of chunks a part.

    Everything else is as in `ImageData`: ``root`` holds the parts or is their common address ("s3://bucket/imagenet").
    Nothing can be held back from a stream or repeated in it, so every part has its own chunks, and ``repeats`` is 1.
    The extra ``scale`` is needed (litdata).
    """

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes in the order of their numbers."""
        return self._stream("train", self.train_part).classes

    def describe(self) -> str:
        """Return one line on the data."""
        found = self._stream("train", self.train_part)
        return (
            f"{self.root}: {len(found):,} training images, {len(found.classes)} classes, {self.preprocessing.size} px"
        )

    def train_dataloader(self) -> StreamingLoader:
        """Return the training batches, in an order that follows the run's seed and can be resumed anywhere."""
        options = {"shuffle": True, "seed": torch.initial_seed() % 2**32, "drop_last": True}
        images = self._stream("train", self.train_part, transform=self._random_transform(), **options)
        return self._streaming_loader(images, self.batch_size)

    def val_dataloader(self) -> StreamingLoader | list[Any]:
        """Return the validation batches; none where there is no validation part."""
        return self._evaluation("val", self.val_part)

    def test_dataloader(self) -> StreamingLoader | list[Any]:
        """Return the test batches; none where there is no test part."""
        return self._evaluation("test", self.test_part)

    def predicted_names(self) -> list[str]:
        """Return nothing: chunks do not keep the names of the files that they were written from."""
        return []

    def _evaluation(self, name: str, part: Part) -> StreamingLoader | list[Any]:
        if part is None:
            return []
        images = self._stream(name, part, transform=self.preprocessing.transform())
        return self._streaming_loader(images, self.eval_batch_size)

    def _stream(self, name: str, part: Part, **options: Any) -> StreamingImages:
        from mamba_datasets.images import StreamingImages

        if self.root is None:
            raise no_data("images", "name the folder of their chunks: --data.root DIR")
        if self.dataset is not None or self.leave_out is not None:
            raise UserError("a stream has neither dataset nor leave_out", "leave them out when the chunks are written")
        if self.repeats > 1:
            raise UserError(f"repeats is {self.repeats}, but a stream has each image once", "leave repeats out")
        if isinstance(part, float):
            raise UserError(f"{name} is {part}, but nothing is held back from a stream", "write chunks for that part")
        return StreamingImages(self.root if part is None else f"{self.root.rstrip('/')}/{part}", **options)

    def _streaming_loader(self, images: StreamingImages, batch_size: int) -> StreamingLoader:
        from mamba_datasets.images import StreamingLoader

        return StreamingLoader(images, batch_size, **self._loading())
