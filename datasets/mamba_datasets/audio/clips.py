"""Labelled sounds, however they are laid out on the disk: known without being read, read one by one, at one rate.

Every layout (folders, a table, a published data set's own) is brought to a `ClipSet`; it differs in its `places` only.

Dimensions in names: N clips, S samples, C classes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mamba_datasets.audio.places import Place, clip_end_s, split_name
from mamba_datasets.audio.read import AudioFile, Channel
from mamba_datasets.audio.resampling import resample
from mamba_datasets.errors import DataError
from mamba_datasets.report import nearest


class Clip(NamedTuple):
    """One labelled sound.

    Args:
        samples_S: float32, one channel, at the set's rate, as long as the clip is: neither padded nor cropped.
        label: The class's index; in a multi-label set a float tensor (C,) of zeros and ones.
        path: The file that it lies in.
        start_s: Where it begins there, in seconds.
        end_s: Where it ends.
    """

    samples_S: Tensor
    label: int | Tensor
    path: str
    start_s: float
    end_s: float


class ClipSet(Dataset[Clip]):
    """Labelled sounds in a fixed order, read by index, each in its own length.

    Reading stops at a broken file with its path; none is replaced by another.

    Args:
        places: Where the clips lie.
        classes: The names; a class is its index.
        rate: Samples a second that come out; a sound of another rate is resampled, and the log says so.
        multilabel: Whether a clip may have several classes, or none.
        channel: "mean" of the channels, or the number of one of them, from 0.
        source: What the clips came from, for errors: a folder, a table.
        notes: What the reader did and says openly.
    """

    def __init__(
        self,
        places: Sequence[Place],
        classes: Sequence[str],
        *,
        rate: int,
        multilabel: bool = False,
        channel: Channel = "mean",
        source: str | Path = "clips",
        notes: Sequence[str] = (),
    ) -> None:
        self.places, self.classes = list(places), list(classes)
        self.rate, self.multilabel, self.channel = rate, multilabel, channel
        self.source, self.notes = str(source), list(notes)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Clip:
        return self.read(index)

    def read(self, index: int, start_s: float = 0.0, seconds: float | None = None) -> Clip:
        """Read a clip, or a part of it; nothing else of its file is decoded.

        Args:
            index: The clip's.
            start_s: Where the part begins, from the clip's own beginning.
            seconds: How long it is; None, or more than there is, for all that follows.

        Raises:
            DataError: The file is broken, or the times lie outside it.
        """
        place = self.places[index]
        with AudioFile(place.path, self.channel) as file:
            clip_end = clip_end_s(place, file.seconds)
            first = place.start_s + start_s
            last = clip_end if seconds is None else min(first + seconds, clip_end)
            wave, rate = file.read(first, last), file.rate
        samples_S = resample(torch.from_numpy(wave), rate, self.rate, place.path)
        return Clip(samples_S, self.label(index), place.path, first, last)

    def seconds(self, index: int) -> float:
        """Return how long a clip is; of its file the header is read."""
        place = self.places[index]
        with AudioFile(place.path, self.channel) as file:
            return clip_end_s(place, file.seconds) - place.start_s

    def label(self, index: int) -> int | Tensor:
        """Return a clip's label, as `Clip` has it."""
        labels = self.places[index].labels
        if not self.multilabel:
            return labels[0]
        label_C = torch.zeros(len(self.classes))
        label_C[list(labels)] = 1.0
        return label_C

    @property
    def labels(self) -> Tensor:
        """All labels, without a sound being read: int64 (N,), or float32 (N, C) in a multi-label set."""
        if not self.multilabel:
            return torch.tensor([place.labels[0] for place in self.places], dtype=torch.int64)
        label_NC = torch.zeros(len(self), len(self.classes))
        for row_C, place in zip(label_NC, self.places, strict=True):
            row_C[list(place.labels)] = 1.0
        return label_NC

    @property
    def counts(self) -> list[int]:
        """How many clips each class has."""
        counted = Counter(label for place in self.places for label in place.labels)
        return [counted[number] for number in range(len(self.classes))]

    @property
    def folds(self) -> list[int] | None:
        """The fold of each clip; None where there are none."""
        folds = [place.fold for place in self.places if place.fold is not None]
        return folds if self.places and len(folds) == len(self) else None

    @property
    def splits(self) -> list[str] | None:
        """The split of each clip, "train", "val", "test" or another name; None where the set is not split."""
        splits = [place.split for place in self.places if place.split is not None]
        return splits if self.places and len(splits) == len(self) else None

    def subset(self, indices: Iterable[int]) -> ClipSet:
        """Return the clips of some indices, with the same classes."""
        return self.with_places([self.places[index] for index in indices])

    def in_split(self, name: str) -> ClipSet:
        """Return the clips of one split.

        Raises:
            DataError: There is none of that name.
        """
        name = split_name(name)
        known = dict.fromkeys(self.splits or ())
        if name not in known:
            remedy = nearest(name, known) if known else "it comes in no parts: use hold_back"
            raise DataError(self.source, f"split {name!r}", "there is no clip of it", remedy)
        return self._where(lambda place: place.split == name)

    def in_folds(self, *folds: int) -> ClipSet:
        """Return the clips of some folds.

        Raises:
            DataError: One of them has no clip.
        """
        self._check_folds(folds)
        return self._where(lambda place: place.fold in folds)

    def outside_folds(self, *folds: int) -> ClipSet:
        """Return the clips of all other folds.

        Raises:
            DataError: One of those named has no clip.
        """
        self._check_folds(folds)
        return self._where(lambda place: place.fold not in folds)

    def with_places(self, places: Sequence[Place]) -> ClipSet:
        """Return a set with other clips and the same classes, rate and channel."""
        options = {"rate": self.rate, "multilabel": self.multilabel, "channel": self.channel}
        return ClipSet(places, self.classes, **options, source=self.source, notes=self.notes)  # type: ignore[arg-type]

    def with_folds(self, folds: Sequence[int]) -> ClipSet:
        """Return the set with a fold for each clip."""
        pairs = zip(self.places, folds, strict=True)
        return self.with_places([dataclasses.replace(place, fold=fold) for place, fold in pairs])

    def _where(self, keep: Callable[[Place], bool]) -> ClipSet:
        return self.with_places([place for place in self.places if keep(place)])

    def _check_folds(self, folds: Iterable[int]) -> None:
        known = sorted(set(self.folds or ()))
        for fold in folds:
            if fold not in known:
                raise DataError(self.source, f"fold {fold}", "there is no clip of it", nearest(fold, known))
