"""Where labelled sounds lie: what a layout tells of them before one is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mamba_datasets.audio.read import Channel
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet

# Tables round times; a clip that ends so much after its file ends with it.
_ROUNDED_S = 0.01
# What splits are called elsewhere, and here.
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a clip lies, and what is known of it without reading it.

    Args:
        path: The file.
        labels: The indices of its classes: one, or any number in a multi-label set.
        start_s: Where it begins in the file, in seconds.
        end_s: Where it ends; None for the end of the file.
        split: "train", "val", "test" or another name; None where the set is not split.
        fold: Its fold; None where there are none.
        group: What it has in common with clips that must not be torn apart by folds: a speaker, a recording.
        where: The row and table that name it, for errors.
    """

    path: str
    labels: tuple[int, ...]
    start_s: float = 0.0
    end_s: float | None = None
    split: str | None = None
    fold: int | None = None
    group: str | None = None
    where: str = ""

    @property
    def name(self) -> str:
        """The file, and where the clip is a part of it, which seconds."""
        if self.end_s is None:
            return f"{self.path}, from {self.start_s:g} s" if self.start_s else self.path
        return f"{self.path}, {self.start_s:g} to {self.end_s:g} s"


@dataclass
class Scan:
    """The clips of a layout.

    Args:
        classes: The names; a class is its index.
        places: Where the clips lie.
        multilabel: Whether a clip may have several classes, or none.
    """

    classes: list[str]
    places: list[Place] = field(default_factory=list)
    multilabel: bool = False

    def clips(self, sink: Collector, rate: int, channel: Channel = "mean") -> ClipSet:
        """Return the set of these clips, with the collector's notes."""
        # the check of a set needs no torch
        from mamba_datasets.audio.clips import ClipSet

        options = {"multilabel": self.multilabel, "source": sink.path, "notes": sink.notes}
        return ClipSet(self.places, self.classes, rate=rate, channel=channel, **options)  # type: ignore[arg-type]


def split_name(name: str) -> str:
    """Return what a split is called here: "validation" is "val", "training" is "train", others stay as they are."""
    return _SPLITS.get(name.lower(), name)


def clip_end_s(place: Place, seconds: float) -> float:
    """Return where a clip ends in its file, in seconds.

    Args:
        place: The clip's.
        seconds: How long the file is.

    Raises:
        DataError: The clip's times lie outside the file, by more than tables are rounded.
    """
    end_s = seconds if place.end_s is None else place.end_s
    if place.start_s < seconds and end_s <= seconds + _ROUNDED_S:
        return min(end_s, seconds)
    found = f"{place.start_s:g} s to {'the end' if place.end_s is None else f'{end_s:g} s'}"
    where = f"times ({place.where})" if place.where else "times"
    expected = f"expected times within the {seconds:g} s that it lasts, found {found}"
    raise DataError(place.path, where, expected, "mend the times, or leave the end empty")
