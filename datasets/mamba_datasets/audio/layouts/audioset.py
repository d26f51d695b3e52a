"""AudioSet (Gemmeke et al., 2017): lists of segments with several labels each, and the sounds that could be had."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mamba_datasets.audio.class_map import ClassMap
from mamba_datasets.audio.places import Place, Scan, split_name
from mamba_datasets.audio.read import SOUND, Channel
from mamba_datasets.audio.root import Root, say_absent
from mamba_datasets.audio.rows import Row, read_rows
from mamba_datasets.report import Collector
from mamba_datasets.survey import some

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet

SEGMENTS = {"train": "balanced_train_segments.csv", "test": "eval_segments.csv"}
CLASS_MAP = "class_labels_indices.csv"
_COLUMNS = ("ytid", "start", "end", "labels")


def audioset_segments(
    root: str | Path,
    *,
    rate: int,
    segments: Mapping[str, str] | None = None,
    class_map: str = CLASS_MAP,
    whole: bool = False,
    missing: Literal["error", "leave_out"] = "error",
    leave_out: str | Path | None = None,
    channel: Channel = "mean",
) -> ClipSet:
    """Return AudioSet's segments, or those of a set in its form, as a multi-label set.

    A segment's sound is looked for anywhere in the folder, named by its video, `ID` or `YID`, or by its start too:
    `ID_30`, `ID_30000` or `ID_30000_40000` (seconds, milliseconds).

    Args:
        root: The folder of the lists and the sounds.
        rate: Samples a second that come out.
        segments: The list of each split, from the folder on; None for the published balanced training segments and the
            evaluation segments.
        class_map: The file of the classes: index, mid, display_name.
        whole: Whether a file that is named by its video alone holds all of that; otherwise, as most downloads do, it
            holds the segment.
        missing: "leave_out" passes over segments without a file, and says how many.
        leave_out: The list of broken files that a check wrote; these are passed over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: A row cannot be used, its label is none of the classes, or its file is not there.
    """
    sink = Collector(root)
    scan = scan_audioset(
        root, sink, segments=segments, class_map=class_map, whole=whole, missing=missing, leave_out=leave_out
    )
    return scan.clips(sink, rate, channel)


def scan_audioset(
    root: str | Path,
    sink: Collector,
    *,
    segments: Mapping[str, str] | None = None,
    class_map: str = CLASS_MAP,
    whole: bool = False,
    missing: Literal["error", "leave_out"] = "error",
    leave_out: str | Path | None = None,
) -> Scan:
    """Read the lists without reading a sound.

    Args:
        root: The folder.
        sink: Takes what is wrong.
        segments: The list of each split.
        class_map: The file of the classes.
        whole: Whether files named by a video alone hold all of it.
        missing: What becomes of segments without a file.
        leave_out: The list of broken files.

    Returns:
        The classes and clips.
    """
    known = ClassMap.read(os.path.join(root, class_map))
    scan, sounds = Scan(known.names, multilabel=True), _Sounds(Root(root, sink, leave_out), whole)
    for split, name in (SEGMENTS if segments is None else segments).items():
        table = os.path.join(root, name)
        _, rows = read_rows(table, sink, _COLUMNS)
        lost = []
        for row in rows:
            segment = _segment(row, table, known, sink)
            if segment is None:
                continue
            if place := sounds.place(segment, split_name(split), f"{row.place} of {table}"):
                scan.places.append(place)
            elif not sounds.left_out(segment):
                lost.append(f"{segment.video} ({row.place})")
        if lost:
            found = f"{len(lost)} of {len(rows)} segments have no file: {some(lost)}"
            if missing == "leave_out":
                sink.note(f"{table}: {found}; they were left out")
            else:
                sink.add("sounds", found, 'fetch them, or give missing="leave_out"', table)
    say_absent(known.names, scan.places, sink)
    return scan


@dataclass(frozen=True)
class _Segment:
    """One row of a list."""

    video: str
    start: float
    end: float
    classes: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """What its file may be called, without an ending; the last two are those of the video."""
        start, end = round(self.start * 1000), round(self.end * 1000)
        times = [f"{start}_{end}", f"{start}", *([f"{start // 1000}"] if start % 1000 == 0 else [])]
        stems = [f"{prefix}{self.video}_{time}" for time in times for prefix in ("", "Y")]
        return [*stems, self.video, f"Y{self.video}"]


def _segment(row: Row, table: str, known: ClassMap, sink: Collector) -> _Segment | None:
    """Return the segment of a row; None where it is a finding."""
    cells, before = row.cells, len(sink.findings)
    indices = [known.find(label, table, row.place, sink) for label in cells["labels"].split(",") if label]
    try:
        start, end = float(cells["start"]), float(cells["end"])
    except ValueError:
        start, end = 0.0, -1.0
    if not 0 <= start < end < float("inf"):
        expected = f"expected seconds, the end after the start, found {cells['start']!r} and {cells['end']!r}"
        sink.add(row.place, expected, "mend the times", table)
    if len(sink.findings) > before:
        return None
    return _Segment(cells["ytid"], start, end, tuple(sorted({index for index in indices if index is not None})))


class _Sounds:
    """The files in a folder, by their names without ending."""

    def __init__(self, root: Root, whole: bool) -> None:
        self.whole, self._sink = whole, root.sink
        self._paths: dict[str, str] = {}
        self._left_out = {os.path.splitext(os.path.basename(path))[0] for path in root.left_out}
        self._used: dict[tuple[str, float], str] = {}
        for folder, _, names in os.walk(root.path):
            for name in sorted(names):
                path = os.path.normpath(os.path.join(folder, name))
                if SOUND.names(name) and path not in root.left_out and root.holds(path):
                    self._paths.setdefault(os.path.splitext(name)[0], path)

    def place(self, segment: _Segment, split: str, where: str) -> Place | None:
        """Return the clip of a segment; None where it has no file. Two segments with one sound are a finding."""
        stem = next((name for name in segment.names if name in self._paths), None)
        if stem is None:
            return None
        within = self.whole and stem in segment.names[-2:]
        start, end = (segment.start, segment.end) if within else (0.0, None)
        earlier = self._used.setdefault((stem, start), where)
        if earlier != where:
            self._sink.add(where, f"has the same sound as {earlier}", "keep one of the rows", self._paths[stem])
        return Place(self._paths[stem], segment.classes, start, end, split, group=segment.video, where=where)

    def left_out(self, segment: _Segment) -> bool:
        """Tell whether a segment's file is one of those to leave out."""
        return any(name in self._left_out for name in segment.names)
