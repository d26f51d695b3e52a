"""Speech Commands (Warden, 2018) as it is published: a folder a word, and lists of the validation and test clips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mamba_datasets.audio.places import Place, Scan
from mamba_datasets.audio.read import SOUND, AudioFile, Channel
from mamba_datasets.audio.root import Root
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector, nearest
from mamba_datasets.tree import files_below, folders_in

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import ClipSet

LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
BACKGROUND = "_background_noise_"
UNKNOWN, SILENCE = "_unknown_", "_silence_"
# Of ten pieces of background noise that follow each other, in the proportions of the words' splits.
_BACKGROUND_SPLITS = (*["train"] * 8, "val", "test")
_SECONDS = 1.0

Rest = Literal["leave_out", "class"]


def speech_commands(
    root: str | Path,
    *,
    rate: int,
    words: Sequence[str] | None = None,
    unknown: Rest = "leave_out",
    background: Rest = "leave_out",
    leave_out: str | Path | None = None,
    channel: Channel = "mean",
) -> ClipSet:
    """Return Speech Commands, split by its lists; a clip's group is its speaker.

    With `words=["yes", "no", …], unknown="class", background="class"` the classes are those words, `_unknown_` and
    `_silence_`, as in the task of twelve classes.

    Args:
        root: The folder that holds the words' folders and the lists.
        rate: Samples a second that come out; the files have 16000.
        words: The words that are classes, in this order; None takes all.
        unknown: What becomes of the other words: left out, or all of them one class, `_unknown_`.
        background: What becomes of the background noise: left out, or cut into pieces of one second that are a class,
            `_silence_`; eight of ten are for training, one for validation, one for the test.
        leave_out: The list of broken files that a check wrote; these are passed over.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: A list is missing or names a file that is not there, or a word has no folder.
    """
    sink = Collector(root)
    scan = scan_speech_commands(root, sink, words=words, unknown=unknown, background=background, leave_out=leave_out)
    return scan.clips(sink, rate, channel)


def scan_speech_commands(
    root: str | Path,
    sink: Collector,
    *,
    words: Sequence[str] | None = None,
    unknown: Rest = "leave_out",
    background: Rest = "leave_out",
    leave_out: str | Path | None = None,
) -> Scan:
    """Find the clips; of the background noise the headers are read, and no sound.

    Args:
        root: The folder.
        sink: Takes what is wrong.
        words: The words that are classes.
        unknown: What becomes of the other words.
        background: What becomes of the background noise.
        leave_out: The list of broken files.

    Returns:
        The classes and clips.
    """
    for name, choice in (("unknown", unknown), ("background", background)):
        if choice not in ("leave_out", "class"):
            raise DataError(root, name, f"expected leave_out or class, found {choice!r}", "choose one of them")
    found = [name for name in folders_in(root) if name != BACKGROUND]
    classes = list(words or found)
    for word in classes:
        if word not in found:
            raise DataError(root, "words", f"there is no folder of {word!r}", nearest(word, found))
    others = [name for name in found if name not in classes]
    files = Root(root, sink, leave_out)
    splits = {path: split for split, name in LISTS.items() for path in _listed(files, name, sink)}
    names = classes + ([UNKNOWN] if others and unknown == "class" else [])
    scan = Scan(names + ([SILENCE] if background == "class" else []))
    for word in found if unknown == "class" else classes:
        label = classes.index(word) if word in classes else len(classes)
        for path in files_below(SOUND, os.path.join(root, word), root, sink):
            path = os.path.normpath(path)
            if path not in files.left_out:
                speaker = os.path.basename(path).partition("_nohash_")[0]
                scan.places.append(Place(path, (label,), split=splits.get(path, "train"), group=speaker))
    if others:
        became = f"are class {UNKNOWN}" if unknown == "class" else "were left out"
        sink.note(f"{len(others)} other words {became}: {', '.join(others)}")
    if background == "class":
        scan.places += _silence(files, len(names), sink)
    elif os.path.isdir(os.path.join(root, BACKGROUND)):
        sink.note(f"{BACKGROUND} was left out")
    return scan


def _listed(files: Root, name: str, sink: Collector) -> list[str]:
    """Return the paths that a list names."""
    path = os.path.join(files.path, name)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        remedy = "take the folder as it is published, or read it as a folder a class"
        raise DataError(path, "list", "expected a list of clips; it cannot be read", remedy) from None
    found = (files.find(line.strip(), f"line {number}", path) for number, line in enumerate(lines, 1) if line.strip())
    return [listed for listed in found if listed is not None]


def _silence(files: Root, label: int, sink: Collector) -> list[Place]:
    """Return the background noise in pieces."""
    folder = os.path.join(files.path, BACKGROUND)
    if not os.path.isdir(folder):
        raise DataError(
            folder, "folder", "there is none", 'take the folder as it is published, or background="leave_out"'
        )
    places = []
    for name in sorted(os.listdir(folder)):
        path = os.path.normpath(os.path.join(folder, name))
        if not SOUND.names(name) or path in files.left_out:
            continue  # the folder has a README
        with AudioFile(path) as file:
            count = int(file.seconds / _SECONDS)
        for number, split in zip(range(count), cycle(_BACKGROUND_SPLITS)):
            places.append(Place(path, (label,), number * _SECONDS, (number + 1) * _SECONDS, split, group=path))
    if not places:
        sink.add("folder", "holds no sound", 'fill it, or give background="leave_out"', folder)
    sink.note(f"{BACKGROUND}: {len(places)} pieces of {_SECONDS:g} s are class {SILENCE}")
    return places
