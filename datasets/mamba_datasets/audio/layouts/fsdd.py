"""The Free Spoken Digit Dataset as it is published: `{digit}_{speaker}_{index}.wav`, index 0 to 4 for the test."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_datasets.audio.places import Place, Scan
from mamba_datasets.audio.read import SOUND, Channel
from mamba_datasets.audio.root import Root
from mamba_datasets.report import Collector
from mamba_datasets.tree import files_below

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet

NAME = re.compile(r"(?P<digit>\d)_[^_]+_(?P<index>\d+)\.wav")
RECORDINGS = "recordings"
_TEST_INDICES = 5


def fsdd(root: str | Path, *, rate: int, leave_out: str | Path | None = None, channel: Channel = "mean") -> ClipSet:
    """Return the spoken digits, split into train and test as published: all speakers are in both.

    Args:
        root: The folder of the recordings, or the one that holds `recordings`.
        rate: Samples a second that come out; the files have 8000.
        leave_out: The list of broken files that a check wrote; these are passed over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: A file has another name.
    """
    sink = Collector(root)
    return scan_fsdd(root, sink, leave_out=leave_out).clips(sink, rate, channel)


def scan_fsdd(root: str | Path, sink: Collector, *, leave_out: str | Path | None = None) -> Scan:
    """Find the recordings without reading one.

    Args:
        root: The folder.
        sink: Takes what is wrong.
        leave_out: The list of broken files.

    Returns:
        The digits as classes, and the clips.
    """
    scan, left_out = Scan(list("0123456789")), Root(root, sink, leave_out).left_out
    inner = os.path.join(root, RECORDINGS)
    for path in files_below(SOUND, inner if os.path.isdir(inner) else root, root, sink):
        name = NAME.fullmatch(os.path.basename(path))
        if os.path.normpath(path) in left_out:
            continue
        if name is None:
            sink.add("name", "expected {digit}_{speaker}_{index}.wav", "rename it, or move it elsewhere", path)
            continue
        split = "test" if int(name["index"]) < _TEST_INDICES else "train"
        scan.places.append(Place(path, (int(name["digit"]),), split=split))
    if not scan.places and not sink.findings:
        sink.add("folder", "holds no recording", "give the folder that holds recordings/")
    return scan
