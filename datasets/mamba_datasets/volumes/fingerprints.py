"""The fingerprint of a data set: what a plan is made from. Every training case is read once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mamba_datasets.errors import DataError
from mamba_datasets.files import storage_error, write_whole
from mamba_datasets.volumes import nifti
from mamba_datasets.volumes.body import body_of, box_of
from mamba_datasets.volumes.cache import digest_of, files_of
from mamba_datasets.volumes.json_files import indented, read_json
from mamba_datasets.volumes.parallel import in_turn
from mamba_datasets.volumes.prepare import turned, turns
from mamba_datasets.volumes.raw import Case, RawDataset

FORMAT_VERSION = 1
# Labelled voxels whose values are kept for the percentiles, over all cases.
_SAMPLES = 10_000_000
_REMEDY = "make it anew with fingerprint(dataset)"


@dataclass(frozen=True)
class Intensities:
    """Values of one channel in labelled voxels, each case with the same weight.

    Args:
        mean: Their mean.
        std: Their standard deviation.
        median: Their median.
        low: Their percentile 0.5.
        high: Their percentile 99.5.
        least: The least.
        most: The greatest.
    """

    mean: float
    std: float
    median: float
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Fingerprint:
    """What a data set looks like; arrays' axes (z, y, x), turned to right, anterior, superior where files say.

    Args:
        dataset: Its name.
        file_ending: Of its files.
        channel_names: By their index.
        labels: The value of each label.
        orientation: To which volumes were turned; None leaves them as stored.
        shapes: Of each case, cropped to what is not zero.
        spacings: Of each case.
        intensities: Of each channel.
        body_share: What cropping leaves of a volume: the median over the cases.
    """

    dataset: str
    file_ending: str
    channel_names: dict[int, str]
    labels: dict[str, int]
    orientation: str | None
    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    intensities: tuple[Intensities, ...]
    body_share: float

    def to_json(self, path: str | Path) -> None:
        """Write the fingerprint as JSON, whole or not at all."""
        content = json.loads(json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}))
        write_whole(path, lambda file: file.write((indented(content) + "\n").encode()))

    @classmethod
    def from_json(cls, path: str | Path) -> Fingerprint:
        """Read a fingerprint that `to_json` wrote.

        Raises:
            DataError: It is none, or of another version.
        """
        content = read_json(path, _REMEDY)
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise DataError(path, "format_version", f"expected {FORMAT_VERSION}", _REMEDY)
        try:
            content["channel_names"] = {int(key): name for key, name in content["channel_names"].items()}
            content["intensities"] = tuple(Intensities(**entry) for entry in content["intensities"])
            for key in ("shapes", "spacings"):
                content[key] = tuple(map(tuple, content[key]))
            return cls(**content)
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(path, "fingerprint", f"is not laid out as one ({error})", _REMEDY) from None


@dataclass(frozen=True)
class _CaseFacts:
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    share: float
    samples: np.ndarray


def fingerprint(dataset: RawDataset, cache_dir: str | Path | None = None, *, workers: int | None = None) -> Fingerprint:
    """Read every training case and tell what a plan needs to know.

    Args:
        dataset: The data set.
        cache_dir: A folder that keeps fingerprints by the content of the files; None reads the cases anew.
        workers: Cases that are read at a time; None takes 4, or as many as there are cores.

    Returns:
        The fingerprint.

    Raises:
        DataError: A case is broken, cases have 2 and 3 axes, or no voxel of any is labelled.
    """
    kept = None if cache_dir is None else _kept(dataset, Path(cache_dir))
    if kept is not None and kept.is_file():
        return Fingerprint.from_json(kept)
    result = _measure(dataset, workers)
    if kept is not None:
        result.to_json(kept)
    return result


def _kept(dataset: RawDataset, folder: Path) -> Path:
    """Return the file of a fingerprint, named by what it is made from."""
    try:
        (folder / "digests").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from None
    files = [[digest_of(path, folder) for path in files_of(case)] for case in dataset.cases]
    content = [FORMAT_VERSION, dataset.name, dataset.channel_names, dataset.labels, dataset.file_ending, files]
    return folder / f"fingerprint-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.json"


def _measure(dataset: RawDataset, workers: int | None) -> Fingerprint:
    count = max(1, _SAMPLES // max(1, len(dataset.cases)))
    orientation = "RAS" if dataset.file_ending in nifti.SUFFIXES else None

    def work(case: Case) -> _CaseFacts:
        return _inspect(dataset, case, orientation, count)

    facts = list(in_turn(work, dataset.cases, doing="reading", workers=workers))
    axes = {len(fact.shape) for fact in facts}
    if len(axes) > 1:
        raise DataError(dataset.root, "shape", "some cases have 2 axes, others 3", "make two data sets of them")
    samples = np.concatenate([fact.samples for fact in facts], axis=1)
    if samples.shape[1] == 0:
        raise DataError(dataset.root, "labels", "no voxel of any case is labelled", "check labelsTr and dataset.json")
    return Fingerprint(
        dataset.name,
        dataset.file_ending,
        dataset.channel_names,
        dataset.labels,
        orientation,
        tuple(fact.shape for fact in facts),
        tuple(fact.spacing for fact in facts),
        tuple(map(_describe, samples)),
        float(np.median([fact.share for fact in facts])),
    )


def _inspect(dataset: RawDataset, case: Case, orientation: str | None, count: int) -> _CaseFacts:
    volume, label = dataset.read(case)
    if label is None:
        raise DataError(case.images[0], "label", "a training case needs one", "add it to labelsTr")
    order, flips = turns(volume, tuple(range(len(volume.shape))), orientation)
    image = turned(volume.array, order, flips)
    box = box_of(body_of(image))
    shape = tuple(stop - start for start, stop in box)
    spacing = tuple(volume.spacing[axis] for axis in order)
    labelled = (label.array[0] > 0) & (label.array[0] != dataset.labels.get("ignore", -1))
    values = volume.array[:, labelled]
    if values.shape[1]:
        # with replacement: each case weighs the same, whatever the size of its structures
        values = values[:, np.random.default_rng(1234).integers(values.shape[1], size=count)]
    share = float(np.prod(shape) / np.prod(volume.shape))
    return _CaseFacts(shape, spacing, share, values)


def _describe(values: np.ndarray) -> Intensities:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5)).tolist()
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Intensities(mean, std, median, low, high, float(values.min()), float(values.max()))
