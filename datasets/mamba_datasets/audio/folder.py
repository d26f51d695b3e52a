"""Sounds for classification: a folder a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mamba_datasets.audio.read import SOUND, Channel, read_audio
from mamba_datasets.audio.resampling import resample
from mamba_datasets.broken import read_broken
from mamba_datasets.report import Collector
from mamba_datasets.tree import scan_classes, split_folder


class AudioFolder(Dataset[tuple[Tensor, int]]):
    """Sounds sorted into a folder a class, as `(samples (S,), class index)` in a fixed order, each in its own length.

    Folders within a class folder belong to the class; names that begin with a dot are passed over. Reading stops at a
    broken file with its path; none is replaced by another.

    Args:
        root: Holds a folder a class, or a folder a split that does.
        rate: Samples a second that come out; a sound of another rate is resampled, and the log says so.
        split: The name of the split's folder, such as "train".
        classes: The classes in the order of their indices, for a split that must agree with another; None takes the
            sorted names of the folders.
        leave_out: The list of broken files that `mamba-apps check ROOT --write-broken FILE` wrote; these are passed
            over.
        channel: "mean" of the channels, or the number of one of them, from 0.
        transform: Applied to each sound.

    Attributes:
        classes: The names; a class is its index.
        paths: The files.
        targets: The class of each file.

    Raises:
        DataError: The folder is not laid out like this: a class is empty, missing or alone, a file is no sound by its
            name, a link leaves the folder. The first such thing is named; `mamba-apps check` lists all.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        rate: int,
        split: str | None = None,
        classes: Sequence[str] | None = None,
        leave_out: str | Path | None = None,
        channel: Channel = "mean",
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        folder = root if split is None else split_folder(root, split)
        left_out = read_broken(leave_out, root)
        tree = scan_classes(SOUND, folder, root, Collector(root), classes=classes, left_out=left_out)
        self.classes, self.paths, self.targets = tree.classes, tree.paths, tree.targets
        self.rate, self.channel, self.transform = rate, channel, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        wave, rate = read_audio(path, channel=self.channel)
        wave_S = resample(torch.from_numpy(wave), rate, self.rate, path)
        return (wave_S if self.transform is None else self.transform(wave_S)), self.targets[index]
