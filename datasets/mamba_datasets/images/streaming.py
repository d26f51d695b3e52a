"""Images in chunks, for sets of the size of ImageNet: written once, then streamed in a new order every epoch.

A few large files take the place of millions of small ones, on a disk or at an address that litdata reads (s3://…).
litdata draws each batch from few chunks, so the images are shuffled when they are written.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_datasets.broken import read_broken
from mamba_datasets.errors import DataError
from mamba_datasets.images.read import IMAGE, load_image, read_bytes, to_mode
from mamba_datasets.report import Collector
from mamba_datasets.survey import in_threads
from mamba_datasets.tree import scan_classes, split_folder

try:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache
except ModuleNotFoundError:
    raise DataError("litdata", "import", "streaming needs this package", "pip install 'mamba-apps[scale]'") from None

_VERSION = 1
# The file as it was, its class, its path within the folder (a string that is a path would be read as an image). Nothing
# here is unpickled.
_LAYOUT = ["bytes", "int", "bytes"]


def optimize_folder(
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    leave_out: str | Path | None = None,
    chunk_bytes: int | str = "64MB",
    seed: int = 0,
) -> int:
    """Write a folder of images into chunks; every image is decoded once to see that it can be.

    The files' bytes are kept as they are.

    Args:
        root: As in `ImageFolder`.
        out: The folder to write, which must not exist; it appears when it is whole.
        split: As in `ImageFolder`.
        classes: As in `ImageFolder`.
        leave_out: As in `ImageFolder`.
        chunk_bytes: The size of a chunk, such as "64MB".
        seed: Of the order in which the images are written.

    Returns:
        The number of images.

    Raises:
        DataError: An image is broken, the folder is not laid out as `ImageFolder` says, or `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise DataError(out, "folder", "exists already", "choose another, or remove it")
    folder = root if split is None else split_folder(root, split)
    left_out = read_broken(leave_out, root)
    tree = scan_classes(IMAGE, folder, root, Collector(root), classes=classes, left_out=left_out)
    order = np.random.default_rng(seed).permutation(len(tree.paths)).tolist()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    partial_out.mkdir(parents=True)
    try:
        cache = Cache(str(partial_out), chunk_bytes=chunk_bytes)
        contents = in_threads(_checked, [tree.paths[number] for number in order])
        for place, (number, content) in enumerate(zip(order, contents, strict=True)):
            name = os.fsencode(os.path.relpath(tree.paths[number], root))
            cache[place] = (content, tree.targets[number], name)
        cache.done()
        cache.merge()
        index_file = partial_out / "index.json"
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index["images"] = {"version": _VERSION, "classes": tree.classes}
        index_file.write_text(json.dumps(index), encoding="utf-8")
        partial_out.rename(out)
    except BaseException:
        shutil.rmtree(partial_out, ignore_errors=True)
        raise
    return len(order)


class StreamingImages(StreamingDataset):
    """The images that `optimize_folder` wrote, as `(image, class index)`, read in order; for `StreamingLoader`.

    Random transforms (Python, NumPy or torch) draw from generators seeded by (seed, epoch, image): they do not depend
    on the number of workers, and the training's own generators are left alone.

    Args:
        root: The folder of chunks, or its address.
        shuffle: Read in a new order every epoch.
        seed: From 0; with the epoch it determines the order and the transforms' randomness.
        transform: Applied to each RGB image.
        **options: Further options of `litdata.StreamingDataset`, such as `drop_last` or `max_cache_size`.

    Attributes:
        classes: The names; a class is its index.

    Raises:
        DataError: The folder holds no such chunks.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        shuffle: bool = False,
        seed: int = 0,
        transform: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        remedy = "write it with mamba_datasets.images.optimize_folder"
        try:
            super().__init__(str(root), shuffle=shuffle, seed=seed, **options)
            index = json.loads(Path(self.input_dir.path, "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found = " ".join(str(error).split())
            raise DataError(root, "index.json", f"expected chunks of images ({found})", remedy) from None
        about = index.get("images", {})
        if about.get("version") != _VERSION or index["config"]["data_format"] != _LAYOUT:
            raise DataError(root, "index.json", f"expected chunks of images, version {_VERSION}", remedy)
        self.classes: list[str] = about["classes"]
        self.image_transform = transform

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        content, target, path = super().__getitem__(index)
        name = os.fsdecode(bytes(path))
        image = to_mode(load_image(io.BytesIO(content), name), name)
        if self.image_transform is not None:
            number = index if isinstance(index, int) else index.index
            with _seeded(self.seed, self.current_epoch, number):
                image = self.image_transform(image)
        return image, target


class StreamingLoader(StreamingDataLoader):
    """litdata's loader, whose state a checkpoint holds: a run resumed in mid-epoch goes on with the very next image.

    That is exact with the same batch size, workers and processes; with others, litdata goes on from about there.

    Args:
        data: The images.
        batch_size: Images a batch.
        num_workers: Processes that read; 0 reads in this one.
        **options: Further options of `litdata.StreamingDataLoader`, such as `collate_fn`.
    """

    def __init__(self, data: StreamingImages, batch_size: int = 1, *, num_workers: int = 0, **options: Any) -> None:
        # litdata's length is right for any number of workers
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")
        # its own generator: a resumed run makes one more iterator, which must not draw from the training's
        super().__init__(data, batch_size=batch_size, num_workers=num_workers, generator=torch.Generator(), **options)


def _checked(path: str) -> bytes:
    content = read_bytes(path)
    to_mode(load_image(io.BytesIO(content), path), path)
    return content


@contextmanager
def _seeded(*parts: int) -> Iterator[None]:
    """Let the global generators draw what these numbers determine, and then go on as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    for_python, for_numpy, for_torch = map(int, np.random.SeedSequence(parts).generate_state(3))
    random.seed(for_python)
    np.random.seed(for_numpy)  # noqa: NPY002
    torch.default_generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
