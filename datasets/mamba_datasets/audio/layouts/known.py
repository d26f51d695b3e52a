"""The layouts of labelled sounds by name, and which of them a folder or table has."""

from __future__ import annotations

import os
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_datasets.audio.layouts.audioset import CLASS_MAP, scan_audioset
from mamba_datasets.audio.layouts.esc50 import TABLE, scan_esc50
from mamba_datasets.audio.layouts.folder import scan_folder
from mamba_datasets.audio.layouts.fsdd import NAME, RECORDINGS, scan_fsdd
from mamba_datasets.audio.layouts.speech_commands import LISTS, scan_speech_commands
from mamba_datasets.audio.layouts.table import scan_table
from mamba_datasets.audio.places import Scan
from mamba_datasets.audio.read import Channel
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.samples.sounds import sounds_path

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet


def _scan_table(path: str | Path, sink: Collector, *, table: str | None = None, **options: Any) -> Scan:
    """Read a table by its own path, or, with that of its folder, by its name in there."""
    if table is None:
        return scan_table(path, sink, **options)
    return scan_table(os.path.join(path, table), sink, **{"root": path, **options})


LAYOUTS: dict[str, Callable[..., Scan]] = {
    "folder": scan_folder,
    "table": _scan_table,
    "speech_commands": scan_speech_commands,
    "esc50": scan_esc50,
    "fsdd": scan_fsdd,
    "audioset": scan_audioset,
}
"""What finds the clips of a layout: `scan(path, sink, **options)`."""


SAMPLE = "sounds"
"""The name under which the sample of made sounds is opened."""


def open_clips(
    path: str | Path, *, rate: int, layout: str | None = None, channel: Channel = "mean", **options: Any
) -> ClipSet:
    """Return labelled sounds, however they are laid out.

    Args:
        path: The folder, a table, or "sounds", the sample of made sounds.
        rate: Samples a second that come out; a sound of another rate is resampled, and the log says so.
        layout: One of `LAYOUTS`; None takes what `guess_layout` tells.
        channel: "mean" of the channels, or the number of one of them, from 0.
        options: The layout's own, such as `classes` of "folder", `multilabel` of "table" or `words` of
            "speech_commands", and `leave_out`.

    Raises:
        DataError: The path, a file or an option does not fit the layout; what does not is named.
    """
    if str(path) == SAMPLE and not os.path.exists(path):
        path = sounds_path()
    sink = Collector(path)
    return scan_layout(path, sink, layout, **options).clips(sink, rate, channel)


def scan_layout(path: str | Path, sink: Collector, layout: str | None = None, **options: Any) -> Scan:
    """Find labelled sounds without reading one.

    Args:
        path: The folder, or a table.
        sink: Takes what is wrong.
        layout: One of `LAYOUTS`; None guesses it.
        options: The layout's own.

    Raises:
        DataError: There is no such layout, or it has no such option.
    """
    if layout is None:
        layout = "table" if "table" in options else guess_layout(path)
    if layout not in LAYOUTS:
        raise DataError(path, "layout", f"there is no layout {layout!r}", nearest(layout, LAYOUTS))
    scan = LAYOUTS[layout]
    known = {**signature(scan_table).parameters, "table": None} if layout == "table" else signature(scan).parameters
    for name in options:
        if name not in known:
            raise DataError(path, "options", f"layout {layout!r} takes no {name!r}", nearest(name, list(known)[2:]))
    return scan(path, sink, **options)


def guess_layout(path: str | Path) -> str:
    """Tell the layout of labelled sounds at a glance.

    Args:
        path: The folder, or a table.

    Returns:
        The layout whose own lists or names are there; "table" for a file, "folder" where nothing speaks for another.
    """
    if not os.path.isdir(path):
        return "table"
    if all(os.path.isfile(os.path.join(path, name)) for name in LISTS.values()):
        return "speech_commands"
    if os.path.isfile(os.path.join(path, TABLE)):
        return "esc50"
    if os.path.isfile(os.path.join(path, CLASS_MAP)):
        return "audioset"
    inner = os.path.join(path, RECORDINGS)
    with os.scandir(inner if os.path.isdir(inner) else path) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return "fsdd" if names and any(map(NAME.fullmatch, names)) else "folder"
