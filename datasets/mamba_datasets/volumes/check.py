"""The check of volumes in nnU-Net's raw layout, for the readers' registry: every file is read to its end."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.registry import register_reader
from mamba_datasets.report import Collector, Finding, Report
from mamba_datasets.survey import describe_copies, some
from mamba_datasets.volumes import nifti
from mamba_datasets.volumes.parallel import in_turn
from mamba_datasets.volumes.raw import Case, Description, check_channels, find_cases, fits_raw, read_description
from mamba_datasets.volumes.read import read_label, read_volume
from mamba_datasets.volumes.resample import ANISOTROPY
from mamba_datasets.volumes.volume import Volume, mismatch


@dataclass(frozen=True)
class _Facts:
    """What is known of one case; `error` is what keeps it from being used, `errors` all of that."""

    path: str
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    digest: bytes = b""
    labels: dict[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    errors: tuple[DataError, ...] = ()

    @property
    def error(self) -> DataError | None:
        return self.errors[0] if self.errors else None


@register_reader("volumes", nifti.SUFFIXES, fits_raw)
def check_volumes(path: Path | str) -> Report:
    """Check a folder in nnU-Net's raw layout, or a single NIfTI file; every volume is read to its end.

    Args:
        path: The folder with `dataset.json`, or the file.

    Returns:
        The report: missing partners, broken files, labels outside the set, files of one case on different grids,
        NaN voxels, empty labels; and notes on sizes, spacings, orientations, labels and copies.
    """
    sink = Collector(path, keep=True)
    if not os.path.isdir(path):
        single = _inspect(Case(Path(path).name, (str(path),)), None)
        sink.findings += map(Finding.of, single.errors)
        return Report(
            str(path), "volumes", tuple(sink.findings), "" if sink.findings else "1 volume", (*_tell([single]),)
        )
    try:
        description = read_description(path)
    except DataError as error:
        return Report(str(path), "volumes", (Finding.of(error),))
    training = find_cases(path, description, sink)
    testing = find_cases(path, description, sink, part="Ts")
    facts = list(in_turn(lambda case: _inspect(case, description), [*training, *testing], doing="checking"))
    sink.findings += [Finding.of(error) for fact in facts for error in fact.errors]
    splits = {case.images[0]: split for split, cases in (("Tr", training), ("Ts", testing)) for case in cases}
    notes = [*_tell(facts), *_tell_labels(facts, description)]
    notes += describe_copies(facts, lambda fact: (splits[fact.path], ""))
    if description.stated_cases not in (None, len(training)):
        notes.insert(0, f"dataset.json states {description.stated_cases} training cases, {len(training)} are here")
    counts = {"training case": len(training), "test case": len(testing), "channel": len(description.channel_names)}
    if not testing:
        del counts["test case"]
    words = [f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items()]
    summary = f"{description.name}: {', '.join(words)}"
    return Report(str(path), "volumes", tuple(sink.findings), "" if sink.findings else summary, tuple(notes))


def _inspect(case: Case, description: Description | None) -> _Facts:
    """Read a case as preparing it would, but go on after what is wrong."""
    errors: list[DataError] = []
    digest = hashlib.blake2b(digest_size=16)
    grids: list[Volume] = []
    count = 0
    for path in case.images:
        try:
            volume = read_volume(path)
        except DataError as error:
            errors.append(error)
            continue
        digest.update(np.ascontiguousarray(volume.array).data)
        count += volume.channels
        # where it lies is all that is needed from here on
        grids.append(replace(volume, array=np.empty((0, *volume.shape), np.float32)))
    if not grids:
        return _Facts(case.images[0], errors=tuple(errors))
    first = grids[0]
    errors += filter(None, (mismatch(other, first) for other in grids[1:]))
    if description is not None and not errors:
        try:
            check_channels(case.images[0], count, description.channel_names)
        except DataError as error:
            errors.append(error)
    labels: dict[int, int] = {}
    if case.label is not None and description is not None:
        try:
            labels = _inspect_label(case.label, first, description, errors)
        except DataError as error:
            errors.append(error)
    facts = _Facts(case.images[0], first.shape, first.spacing, first.orientation, digest.digest(), labels)
    return replace(facts, notes=first.notes, errors=tuple(errors))


def _inspect_label(path: str, image: Volume, description: Description, errors: list[DataError]) -> dict[int, int]:
    label = read_label(path, tuple(description.labels.values()))
    error = mismatch(label, image)
    if error is not None:
        errors.append(error)
    values, counts = np.unique(label.array, return_counts=True)
    if values.tolist() == [0]:
        found = "every voxel is background"
        errors.append(DataError(path, "labels", found, "label it; where nothing is to be found, it can be trained on"))
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _tell(facts: Sequence[_Facts]) -> list[str]:
    """Tell the sizes, spacings and orientations of usable cases."""
    usable = [fact for fact in facts if fact.shape]
    if not usable:
        return []
    notes = [
        f"sizes: {_range([fact.shape for fact in usable])} voxels",
        f"spacings: {_range([fact.spacing for fact in usable])} mm",
    ]
    if usable[0].path.lower().endswith(nifti.SUFFIXES):  # pictures do not say how they lie
        notes.append(f"orientations: {_counted(fact.orientation for fact in usable)}")
    coarse = [fact.path for fact in usable if max(fact.spacing) > ANISOTROPY * min(fact.spacing)]
    if coarse:
        notes.append(f"{len(coarse)} with slices over {ANISOTROPY:g} times as thick as pixels are wide: {some(coarse)}")
    for note, count in Counter(note for fact in usable for note in fact.notes).items():
        notes.append(f"{count} of {len(usable)}: {note}")
    return notes


def _tell_labels(facts: Sequence[_Facts], description: Description) -> list[str]:
    labelled = [fact for fact in facts if fact.labels]
    words = []
    for name, value in sorted(description.labels.items(), key=lambda item: item[1]):
        cases = sum(value in fact.labels for fact in labelled)
        words.append(f"{value} {name} (in {cases} of {len(labelled)})")
    return [f"labels: {', '.join(words)}"] if labelled else []


def _range(entries: list[tuple[float, ...]]) -> str:
    """Tell the least, middle and greatest along each of a file's axes, or the one there is."""
    if len(set(entries)) == 1 or len({len(entry) for entry in entries}) > 1:
        return ", ".join(sorted({_times(entry) for entry in entries}))
    columns = np.array(entries)
    low, middle, high = columns.min(0), np.median(columns, axis=0), columns.max(0)
    return f"{_times(low)} to {_times(high)}, the middle {_times(middle)}"


def _times(entry: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in list(entry)[::-1])


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common())
