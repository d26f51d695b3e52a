"""Preprocessing once: each case in a folder named by the content of its files and by how it was prepared.

A case's folder appears whole under its name or not at all: it is filled under another name, brought to the disk and
renamed. While a process fills it, it holds a lock that vanishes with the process: others wait for it, and what a
killed one left is begun anew. The same files and plan give the same folder, in every run and for every plan that
prepares volumes alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mamba_datasets.errors import DataError, check_path
from mamba_datasets.files import storage_error, sync_folder, write_whole
from mamba_datasets.volumes.parallel import in_turn
from mamba_datasets.volumes.pictures import path_beside
from mamba_datasets.volumes.plan import Plan
from mamba_datasets.volumes.prepare import Geometry, PreparedCase, prepare_case
from mamba_datasets.volumes.raw import Case, RawDataset

# Raised whenever the same files and plan would be prepared differently.
CACHE_VERSION = 1
_CARD = "case.json"
_ARRAYS = ("image", "label", "locations")
# nnU-Net's: at most so many voxels of each structure, or this share of them if that is more.
_LOCATIONS, _SHARE = 10_000, 0.01


@dataclass(frozen=True)
class CachedCase:
    """A prepared case on the disk; its arrays are mapped, not read, each time they are asked for.

    Args:
        name: Of the case.
        folder: Where it lies.
        geometry: The way back to the original volume.
        image_path: The first of the image's files.
        label_path: The label's file; None where there is none.
    """

    name: str
    folder: str
    geometry: Geometry
    image_path: str
    label_path: str | None

    @property
    def image(self) -> np.ndarray:
        """float32 (C, *axes), mapped from the disk."""
        return self._mapped("image")

    @property
    def label(self) -> np.ndarray | None:
        """Labels (*axes), mapped from the disk; None where there are none."""
        return None if self.label_path is None else self._mapped("label")

    @property
    def locations(self) -> np.ndarray:
        """int32 (n, 1 + axes), sorted by label: voxels of each structure, at most 10,000 or 1 % of it."""
        return self._mapped("locations")

    def _mapped(self, name: str) -> np.ndarray:
        try:
            return np.load(Path(self.folder, f"{name}.npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            found = f"cannot be read ({' '.join(str(error).split())})"
            raise DataError(self.folder, name, found, "run again: the case is then prepared anew") from None


class Prepared(Sequence[CachedCase]):
    """Prepared cases in the order of their names; also looked up by name."""

    def __init__(self, cases: Sequence[CachedCase]) -> None:
        self.cases = {case.name: case for case in sorted(cases, key=lambda case: case.name)}
        self.names = list(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[CachedCase]:
        return iter(self.cases.values())

    def __getitem__(self, key: Any) -> Any:
        """Return a case by its name or number, or the cases of a slice."""
        if isinstance(key, str):
            return self.cases[key]
        if isinstance(key, slice):
            return Prepared([self.cases[name] for name in self.names[key]])
        return self.cases[self.names[key]]

    def only(self, names: Sequence[str]) -> Prepared:
        """Return the cases of these names, such as a fold's."""
        return Prepared([self.cases[name] for name in names])


def preprocess(
    dataset: RawDataset,
    plan: Plan,
    cache_dir: str | Path,
    *,
    cases: Sequence[Case] | None = None,
    workers: int | None = None,
) -> Prepared:
    """Prepare cases for the network, each once: what the folder holds already is used.

    May be interrupted, repeated and run by several processes at the same time.

    Args:
        dataset: The data set.
        plan: How.
        cache_dir: The folder of prepared cases, which may serve several data sets and plans; made where it is missing.
        cases: Which of them; None takes the training cases.
        workers: Cases that are prepared at a time, each of which takes several times its size in memory; None takes
            4, or as many as there are cores.

    Returns:
        The prepared cases.

    Raises:
        DataError: A case cannot be read, or nothing can be written there; what is prepared by then is kept.
    """
    folder = Path(cache_dir)
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        (folder / "digests").mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from None
    recipe = _recipe(plan)

    def work(case: Case) -> CachedCase:
        return _prepared(dataset, case, plan, recipe, folder)

    chosen = dataset.cases if cases is None else cases
    return Prepared(list(in_turn(work, chosen, doing="preparing", workers=workers)))


def digest_of(path: str, folder: Path) -> str:
    """Return the SHA-256 of a file; remembered in a folder for as long as the file's size, times and place stay.

    Args:
        path: The file.
        folder: Holds a `digests` folder.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", check_path(path)) from None
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    memo = folder / "digests" / hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
    try:
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not known yet, or of another layout: it is told anew
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", "check the disk and permissions") from None
    note = json.dumps({"stamp": stamp, "sha256": digest})
    with contextlib.suppress(DataError):  # a folder that may only be read costs the time, and no more
        write_whole(memo, lambda file: file.write(note.encode()), durable=False)
    return digest


def files_of(case: Case) -> list[str]:
    """Return all files that decide what a case is, those beside a TIFF that state its spacing included."""
    named = [*case.images, *([] if case.label is None else [case.label])]
    return named + sorted({beside for path in named if os.path.isfile(beside := path_beside(path))})


def _recipe(plan: Plan) -> str:
    """Return what of a plan decides how a case is prepared."""
    content = plan.to_dict()
    kept = ("spacing", "axes", "orientation", "normalisation", "image_resampling", "label_resampling", "labels")
    return json.dumps({"version": CACHE_VERSION, **{key: content[key] for key in kept}}, sort_keys=True)


def _prepared(dataset: RawDataset, case: Case, plan: Plan, recipe: str, folder: Path) -> CachedCase:
    files = files_of(case)
    digests = [digest_of(path, folder) for path in files]
    content = json.dumps([recipe, len(case.images), case.label is not None, digests])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    home = folder / key
    geometry = _whole(home)
    if geometry is None:
        with _locked(folder / "locks" / key):
            geometry = _whole(home)
            if geometry is None:
                prepared = _prepare(dataset, case, plan)
                if [digest_of(path, folder) for path in files] != digests:
                    found = "a file of this case changed while it was read"
                    raise DataError(case.images[0], "file", found, "run again once nothing writes to the data set")
                geometry = _store(prepared, case, plan, home)
    return CachedCase(case.name, str(home), geometry, case.images[0], case.label)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        raise storage_error(path, error) from None
    try:
        yield
    finally:
        lock.release()


def _whole(home: Path) -> Geometry | None:
    """Return the geometry of a case that is there with all its bytes."""
    try:
        card = json.loads((home / _CARD).read_text())
        sizes = {name: (home / name).stat().st_size for name in card["sizes"]}
        return Geometry.from_dict(card["geometry"]) if sizes == card["sizes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prepare(dataset: RawDataset, case: Case, plan: Plan) -> PreparedCase:
    volume, label = dataset.read(case)
    return prepare_case(volume, plan, label)


def _store(prepared: PreparedCase, case: Case, plan: Plan, home: Path) -> Geometry:
    """Write a prepared case into its folder; the caller holds its lock."""
    arrays = {"image": prepared.image}
    if prepared.label is not None:
        arrays["label"] = prepared.label
        arrays["locations"] = find_locations(prepared.label, plan)
    partial = home.with_name(f"{home.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        for name, array in arrays.items():
            with open(partial / f"{name}.npy", "xb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        sizes = {f"{name}.npy": (partial / f"{name}.npy").stat().st_size for name in arrays}
        card = {"case": case.name, "sizes": sizes, "geometry": prepared.geometry.to_dict()}
        write_whole(partial / _CARD, lambda file: file.write((json.dumps(card, indent=1) + "\n").encode()))
        shutil.rmtree(home, ignore_errors=True)  # damaged, or nothing would be prepared
        os.rename(partial, home)
        sync_folder(home.parent)
    except OSError as error:
        raise storage_error(home, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return prepared.geometry


def find_locations(label: np.ndarray, plan: Plan) -> np.ndarray:
    """Return voxels of each structure, for patches that are centred on one.

    Args:
        label: Labels (*axes).
        plan: Names the classes; where there is a label to be ignored, voxels of the background count as a structure
            of their own, so that patches are drawn from what is annotated.

    Returns:
        int32 (n, 1 + axes), sorted by label: the label and the indices. The choice depends on the label only.
    """
    first = 0 if plan.ignore_label is not None else 1
    rows = [np.empty((0, 1 + label.ndim), np.int32)]
    generator = np.random.default_rng(1234)
    flat = label.reshape(-1)
    for value in range(first, plan.num_classes):
        places = np.flatnonzero(flat == value)
        if len(places) == 0:
            continue
        count = max(min(_LOCATIONS, len(places)), int(np.ceil(len(places) * _SHARE)))
        chosen = np.sort(generator.choice(places, count, replace=False))
        indices = np.stack(np.unravel_index(chosen, label.shape), axis=1)
        rows.append(np.concatenate([np.full((count, 1), value), indices], axis=1).astype(np.int32))
    return np.concatenate(rows)
