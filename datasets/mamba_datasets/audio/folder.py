"""Sounds for classification: a folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mamba_datasets.audio.clips import ClipSet
from mamba_datasets.audio.layouts.folder import scan_folder
from mamba_datasets.audio.read import Channel
from mamba_datasets.report import Collector


class AudioFolder(ClipSet):
    """Sounds sorted into a folder a class, or a folder a split that has these.

    Folders within a class folder belong to the class; names that begin with a dot are passed over. Where all folders
    have names of splits ("train", "validation", …) the training split's classes are those of all.

    Args:
        root: The folder.
        rate: Samples a second that come out; a sound of another rate is resampled, and the log says so.
        classes: The classes in the order of their indices, for a set that must agree with another; None takes the
            sorted names of the folders.
        leave_out: The list of broken files that `mamba-apps check ROOT --write-broken FILE` wrote; these are passed
            over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: The folder is not laid out like this: a class is empty, missing or alone, a file is no sound by its
            name, a link leaves the folder. The first such thing is named; `mamba-apps check` lists all.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        rate: int,
        classes: Sequence[str] | None = None,
        leave_out: str | Path | None = None,
        channel: Channel = "mean",
    ) -> None:
        sink = Collector(root)
        scan = scan_folder(root, sink, classes=classes, leave_out=leave_out)
        super().__init__(scan.places, scan.classes, rate=rate, channel=channel, source=root, notes=sink.notes)
