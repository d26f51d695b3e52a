"""nnU-Net v2's raw layout: `dataset.json`, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, imagesTs."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamba_datasets.broken import read_broken
from mamba_datasets.errors import DataError
from mamba_datasets.report import Collector
from mamba_datasets.tree import Medium, folders_in, loose_files
from mamba_datasets.volumes import pictures
from mamba_datasets.volumes.json_files import read_json
from mamba_datasets.volumes.plan import IGNORE
from mamba_datasets.volumes.read import SUFFIXES, ending_of, read_case, read_label
from mamba_datasets.volumes.volume import Volume, mismatch

DESCRIPTION = "dataset.json"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_LAYOUT = "see nnU-Net's dataset format: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz"
_CONVERT = (
    "convert it with nnU-Net's nnUNetv2_convert_MSD_dataset, or by hand: images CASE_0000.nii.gz, and in dataset.json "
    'channel_names, labels such as {"background": 0, "liver": 1}, and file_ending'
)


@dataclass(frozen=True)
class Case:
    """The files of one case.

    Args:
        name: Without channel and ending.
        images: A file a channel in the channels' order, or one file of all (a picture in colours).
        label: The mask; None where there is none.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says.

    Args:
        name: The data set's name.
        channel_names: By their index.
        labels: The value of each label, background 0.
        file_ending: Of images and labels.
        stated_cases: How many training cases there should be; None where it does not say.
    """

    name: str
    channel_names: dict[int, str]
    labels: dict[str, int]
    file_ending: str
    stated_cases: int | None = None


class RawDataset:
    """A folder in nnU-Net v2's raw layout; the cases are known at once, volumes are read when asked for.

    Args:
        root: The folder.
        leave_out: The list of broken files that `mamba-apps check ROOT --write-broken FILE` wrote; their cases are
            passed over.

    Attributes:
        name: The data set's name.
        channel_names: By their index.
        labels: The value of each label.
        file_ending: Of images and labels.
        cases: The training cases, sorted by name.
        test_cases: Those of imagesTs, with labels where there is a labelsTs.

    Raises:
        DataError: The description is missing or unusable, or files are missing. The first such thing is named;
            `mamba-apps check` lists all.
    """

    def __init__(self, root: str | Path, *, leave_out: str | Path | None = None) -> None:
        self.root = str(root)
        description = read_description(root)
        self.name, self.file_ending = description.name, description.file_ending
        self.channel_names, self.labels = description.channel_names, description.labels
        left_out = read_broken(leave_out, root)
        sink = Collector(root)
        self.cases = find_cases(root, description, sink, left_out=left_out)
        self.test_cases = find_cases(root, description, sink, part="Ts", left_out=left_out)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, name: str) -> Case:
        """Return the training case of this name."""
        for case in self.cases:
            if case.name == name:
                return case
        raise DataError(self.root, f"case {name!r}", "there is no such training case", "see imagesTr for the names")

    def read(self, case: Case) -> tuple[Volume, Volume | None]:
        """Read a case's image and its label.

        Raises:
            DataError: A file is broken, the files do not lie on one grid, the channels are not those of the
                description, or a label's value is none of its labels.
        """
        volume = read_case(case.images)
        check_channels(volume.path, volume.channels, self.channel_names)
        if case.label is None:
            return volume, None
        label = read_label(case.label, tuple(self.labels.values()))
        error = mismatch(label, volume)
        if error is not None:
            raise error
        return volume, label


def check_channels(path: str, count: int, channel_names: dict[int, str]) -> None:
    """Raise a `DataError` unless an image has as many channels as there are names."""
    if count != len(channel_names):
        names = ", ".join(channel_names.values())
        expected = f"expected {len(channel_names)} ({names}), found {count}"
        raise DataError(path, "channels", expected, "give a file a channel: CASE_0000, CASE_0001, …")


def fits_raw(folder: Path) -> bool:
    """Tell at a glance whether a folder has nnU-Net's raw layout, or two of its three parts."""
    parts = (folder / DESCRIPTION).is_file(), (folder / "imagesTr").is_dir(), (folder / "labelsTr").is_dir()
    return sum(parts) > 1


def read_description(root: str | Path) -> Description:
    """Read and check `dataset.json`.

    Raises:
        DataError: It is missing, or something in it is missing, wrong or not supported.
    """
    path = Path(root, DESCRIPTION)
    if not path.is_file():
        found = ", ".join(folders_in(root)) or "no folder"
        raise DataError(root, "layout", f"expected {DESCRIPTION}, imagesTr and labelsTr, found {found}", _LAYOUT)
    content = read_json(path, _LAYOUT)
    return description_of(content, path, Path(os.path.abspath(root)).name)


def description_of(content: dict[str, Any], path: str | Path, name: str) -> Description:
    """Check what a `dataset.json` holds.

    Args:
        content: The object in it.
        path: The file, for errors.
        name: The data set's name, where the file states none.

    Raises:
        DataError: As in `read_description`.
    """
    if "dataset" in content:
        raise DataError(path, "dataset", "lists of files are not supported", "lay them out in imagesTr and labelsTr")
    ending = content.get("file_ending")
    if ending is None and "modality" in content:
        found = "is that of the Medical Segmentation Decathlon and nnU-Net 1, expected nnU-Net 2's"
        raise DataError(path, "layout", found, _CONVERT)
    if ending is None:
        raise DataError(path, "file_ending", "is missing", 'state it, such as "file_ending": ".nii.gz"')
    if not isinstance(ending, str) or ending not in SUFFIXES:
        raise DataError(path, "file_ending", f"expected one of {' '.join(SUFFIXES)}, found {ending!r}", "convert them")
    return Description(
        str(content.get("name") or name),
        _channel_names(content.get("channel_names", content.get("modality")), path),
        _labels(content.get("labels"), path),
        ending,
        stated if isinstance(stated := content.get("numTraining"), int) else None,
    )


def find_cases(
    root: str | Path,
    description: Description,
    sink: Collector,
    *,
    part: str = "Tr",
    left_out: frozenset[str] = frozenset(),
) -> list[Case]:
    """Find the cases of a part of a data set.

    Args:
        root: The folder.
        description: What its `dataset.json` says.
        sink: Takes missing channels, images and labels.
        part: "Tr" for training; "Ts" for testing, where folders and labels may be missing.
        left_out: Paths whose cases are passed over.

    Returns:
        The complete cases, sorted by name.
    """
    images, labels = (os.path.join(root, f"{kind}{part}") for kind in ("images", "labels"))
    files = _by_channel(images, description, sink, left_out) if os.path.isdir(images) else {}
    masks = {}
    if os.path.isdir(labels):
        masks = {_stem(path, description.file_ending): path for path in _files(labels, description.file_ending)}
    if part == "Tr" and not files and not sink.findings:
        found = f"imagesTr holds no CASE_0000{description.file_ending}"
        sink.add("layout", found, _LAYOUT, root)
    dropped = {name for name, by_channel in files.items() if left_out.intersection(by_channel.values())}
    dropped |= {name for name, path in masks.items() if path in left_out}
    cases = []
    for name in sorted(files.keys() - dropped):
        channels, label = _complete(name, files[name], description, sink), masks.get(name)
        if label is None and (part == "Tr" or masks):
            expected = f"{os.path.basename(labels)} has no {name}{description.file_ending}"
            sink.add("label", expected, "add it, or leave out the image", next(iter(files[name].values())))
        elif channels:
            cases.append(Case(name, channels, label))
    for name in sorted(masks.keys() - files.keys() - dropped):
        expected = f"{os.path.basename(images)} has no {name}_0000{description.file_ending}"
        sink.add("image", expected, "add it, or leave out the label", masks[name])
    return cases


def _by_channel(
    folder: str, description: Description, sink: Collector, left_out: frozenset[str]
) -> dict[str, dict[int, str]]:
    """Return the image files of each case by their channel."""
    files: dict[str, dict[int, str]] = defaultdict(dict)
    for path in _files(folder, description.file_ending):
        match = _CHANNEL.fullmatch(_stem(path, description.file_ending))
        if match is not None:
            files[match["case"]][int(match["channel"])] = path
        elif path not in left_out:
            remedy = f"rename it to CASE_0000{description.file_ending}"
            sink.add("name", "expected the channel at its end, such as _0000", remedy, path)
    return files


def _complete(name: str, by_channel: dict[int, str], description: Description, sink: Collector) -> tuple[str, ...]:
    """Return a case's files in the channels' order, or none where the channels are not those of the description."""
    expected = sorted(description.channel_names)
    # a picture in colours holds several channels, which only reading it can tell
    in_colours = description.file_ending in pictures.SUFFIXES and list(by_channel) == [0]
    if sorted(by_channel) == expected or in_colours:
        return tuple(by_channel[channel] for channel in sorted(by_channel))
    told = [f"_{channel:04d} missing" for channel in expected if channel not in by_channel]
    told += [f"_{channel:04d} unknown" for channel in sorted(by_channel) if channel not in expected]
    remedy = f"make the files agree with {DESCRIPTION}'s channel_names"
    found = f"expected {len(expected)} files for {name}, found {', '.join(told)}"
    sink.add("channels", found, remedy, by_channel[min(by_channel)])
    return ()


def _files(folder: str, ending: str) -> list[str]:
    return [path for path in loose_files(Medium("volume", (ending,)), folder) if ending_of(path) == ending]


def _stem(path: str, ending: str) -> str:
    return os.path.basename(path)[: -len(ending)]


def _channel_names(entry: Any, path: str | Path) -> dict[int, str]:
    remedy = 'write it like {"0": "CT"}'
    if not isinstance(entry, dict) or not entry:
        raise DataError(path, "channel_names", f"expected the name of each channel, found {entry!r}", remedy)
    if sorted(entry) != sorted(map(str, range(len(entry)))):
        raise DataError(path, "channel_names", f"expected 0 to {len(entry) - 1}, found {', '.join(entry)}", remedy)
    return {number: str(entry[str(number)]) for number in range(len(entry))}


def _labels(entry: Any, path: str | Path) -> dict[str, int]:
    remedy = 'write them like {"background": 0, "liver": 1}'
    if not isinstance(entry, dict) or not entry:
        raise DataError(path, "labels", f"expected the value of each label, found {entry!r}", remedy)
    for name, value in entry.items():
        if isinstance(value, list):
            found = f"{name!r} is a region, made of several labels: regions are not supported"
            raise DataError(path, "labels", found, "give each voxel one label, and unite regions after prediction")
        if isinstance(value, str) and name.isdigit():
            raise DataError(path, "labels", f"expected name: value, found {name!r}: {value!r}", remedy)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(path, f"labels, {name!r}", f"expected a whole number, found {value!r}", remedy)
    values = sorted(entry.values())
    if values != list(range(len(values))) or len(values) < 2:
        raise DataError(path, "labels", f"expected the values 0, 1, 2, … once each, found {values}", remedy)
    if entry.get(IGNORE, values[-1]) != values[-1]:
        raise DataError(path, f"labels, {IGNORE!r}", f"expected the highest value, found {entry[IGNORE]}", remedy)
    return dict(entry)
