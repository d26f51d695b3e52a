"""ESC-50 (Piczak, 2015) as it is published: `meta/esc50.csv` with five folds, `audio/*.wav`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_datasets.audio.places import Place, Scan
from mamba_datasets.audio.read import Channel
from mamba_datasets.audio.root import Root
from mamba_datasets.audio.rows import read_rows
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet

TABLE = os.path.join("meta", "esc50.csv")
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")


def esc50(
    root: str | Path,
    *,
    rate: int,
    esc10: bool = False,
    leave_out: str | Path | None = None,
    channel: Channel = "mean",
) -> ClipSet:
    """Return ESC-50's clips, with its folds from 1 to 5; clips of one recording are in one fold.

    Args:
        root: The folder that holds `meta` and `audio`.
        rate: Samples a second that come out.
        esc10: Whether to take the ten classes of ESC-10 only.
        leave_out: The list of broken files that a check wrote; these are passed over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: A row of the table cannot be used, or its file is not there.
    """
    sink = Collector(root)
    return scan_esc50(root, sink, esc10=esc10, leave_out=leave_out).clips(sink, rate, channel)


def scan_esc50(root: str | Path, sink: Collector, *, esc10: bool = False, leave_out: str | Path | None = None) -> Scan:
    """Read the table without reading a sound.

    Args:
        root: The folder.
        sink: Takes what is wrong.
        esc10: Whether to take ESC-10 only.
        leave_out: The list of broken files.

    Returns:
        The classes, in the order of their published numbers, and clips.
    """
    table = os.path.join(root, TABLE)
    columns, rows = read_rows(table, sink)
    if lacking := [name for name in _COLUMNS if name not in columns]:
        expected = f"expected columns {', '.join(_COLUMNS)}; there is no {lacking[0]}"
        raise DataError(table, "header", expected, "take the table as it is published")
    rows = [row for row in rows if not esc10 or row.cells["esc10"] == "True"]
    names: dict[int, str] = {}
    for row in rows:
        target, name = row.cells["target"], row.cells["category"]
        if not target.isdecimal() or not row.cells["fold"].isdecimal():
            raise DataError(
                table, row.place, "expected numbers as fold and target", "take the table as it is published"
            )
        if names.setdefault(int(target), name) != name:
            found = f"class {target} is {names[int(target)]!r} above and {name!r} here"
            sink.add(row.place, found, "take the table as it is published", table)
    numbers = {target: number for number, target in enumerate(sorted(names))}
    scan, files = Scan([names[target] for target in numbers]), Root(root, sink, leave_out)
    for row in rows:
        place = f"{row.place}, column filename"
        if path := files.find(os.path.join("audio", row.cells["filename"]), place, table):
            number, fold = numbers[int(row.cells["target"])], int(row.cells["fold"])
            scan.places.append(Place(path, (number,), fold=fold, group=row.cells["src_file"]))
    return scan
