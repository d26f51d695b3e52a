"""Preparing once: repeated, interrupted, concurrent and damaged, the cache gives the same cases; patches from it."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mamba_datasets.errors import DataError
from mamba_datasets.volumes import (
    CachedCase,
    Plan,
    Prepared,
    RawDataset,
    fingerprint,
    folds,
    make_plan,
    prepare_case,
    preprocess,
    read_folds,
    read_volume,
    sample_patch,
    write_mask,
    write_synthetic,
)
from mamba_datasets.volumes import cache as cache_module
from mamba_datasets.volumes.cache import find_locations

# Prepares a folder; the first argument is what to do beside: nothing, or die while a case is half on the disk.
SCRIPT = """
import os, signal, sys
import numpy as np
from mamba_datasets.volumes import Plan, RawDataset, preprocess
mode, root, plan, cache = sys.argv[1:]
if mode == "die":
    written, save = [], np.save
    def dying(file, array, **options):
        save(file, array, **options)
        file.flush()
        written.append(array)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    np.save = dying
prepared = preprocess(RawDataset(root), Plan.from_json(plan), cache, workers=1)
print(len(prepared), sum(float(case.image.astype(np.float64).sum()) for case in prepared))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("volumes") / "data", 5, (16, 14, 12), spacing=(1.0, 1.2, 2.0))


@pytest.fixture(scope="module")
def plan(root: Path) -> Plan:
    return replace(make_plan(fingerprint(RawDataset(root))), spacing=(1.8, 1.1, 1.0))


@pytest.fixture
def own(root: Path, tmp_path: Path) -> RawDataset:
    """A copy of the data, to be changed."""
    return RawDataset(shutil.copytree(root, tmp_path / "own"))


def homes(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir() and path.name not in ("locks", "digests"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which cases are prepared from here on."""
    seen: list[str] = []

    def recording(volume, plan, label=None):
        seen.append(Path(volume.path).name)
        return prepare_case(volume, plan, label)

    monkeypatch.setattr(cache_module, "prepare_case", recording)
    return seen


def assert_same(prepared: Prepared, other: Prepared) -> None:
    assert prepared.names == other.names
    for name in prepared.names:
        for array in ("image", "label", "locations"):
            np.testing.assert_array_equal(getattr(prepared[name], array), getattr(other[name], array))
        assert prepared[name].geometry == other[name].geometry


def test_a_case_is_what_preparing_it_gives(root: Path, plan: Plan, tmp_path: Path) -> None:
    dataset = RawDataset(root)
    prepared = preprocess(dataset, plan, tmp_path)
    assert len(prepared) == 5
    for case in dataset.cases:
        volume, label = dataset.read(case)
        expected = prepare_case(volume, plan, label)
        found = prepared[case.name]
        assert isinstance(found.image, np.memmap)
        assert found.image.dtype == np.float32
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.label, expected.label)
        assert (found.geometry, found.image_path, found.label_path) == (expected.geometry, case.images[0], case.label)
        for label_value, *index in found.locations:
            assert found.label[tuple(index)] == label_value


def test_sequences_of_cases(root: Path, plan: Plan, tmp_path: Path) -> None:
    prepared = preprocess(RawDataset(root), plan, tmp_path)
    assert [case.name for case in prepared] == prepared.names
    assert prepared[0].name == prepared[prepared.names[0]].name == "case_tr_000"
    assert prepared[1:3].names == prepared.names[1:3]
    train, val = folds(prepared.names, 5)[0]
    assert prepared.only(val).names == ["case_tr_000"]
    assert len(prepared.only(train)) == 4
    case: CachedCase = pickle.loads(pickle.dumps(prepared))[2]
    np.testing.assert_array_equal(case.image, prepared[2].image)


def test_nothing_is_prepared_twice(
    own: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    seen = counted(monkeypatch)
    first = preprocess(own, plan, cache)
    assert len(seen) == 5
    assert_same(preprocess(own, plan, cache), first)
    # what does not decide how a case is prepared, decides nothing here; neither do names
    preprocess(own, replace(plan, batch_size=7, dataset="another", median_shape=()), cache)
    moved = shutil.copytree(own.root, tmp_path / "moved")
    assert_same(preprocess(RawDataset(moved), plan, cache), first)
    assert len(seen) == 5
    # what does, does
    preprocess(own, replace(plan, spacing=(2.0, 1.1, 1.0)), cache)
    assert len(seen) == 10
    assert len(homes(cache)) == 10


def test_a_changed_file_is_prepared_anew(
    own: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(own, plan, tmp_path / "cache")
    seen = counted(monkeypatch)
    label = own.cases[2].label
    volume = read_volume(own.cases[2].images[0])
    mask = np.zeros(volume.shape, np.uint8)
    mask[2:5, 2:5, 2:5] = 2
    write_mask(label, mask, volume)
    prepared = preprocess(own, plan, tmp_path / "cache")
    assert seen == ["case_tr_002_0000.nii.gz"]
    assert set(np.unique(prepared[2].label)) == {0, 2}


def test_a_file_that_changes_while_it_is_read(
    own: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(volume, plan, label=None):
        with open(volume.path, "ab") as file:
            file.write(b"\0")
        return prepare_case(volume, plan, label)

    monkeypatch.setattr(cache_module, "prepare_case", changing)
    with pytest.raises(DataError, match="a file of this case changed while it was read; run again once nothing writes"):
        preprocess(own, plan, tmp_path / "cache", workers=1)
    assert homes(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["shorter", "missing", "no card"])
def test_damaged_cases_are_prepared_anew(root: Path, plan: Plan, tmp_path: Path, damage: str) -> None:
    dataset = RawDataset(root)
    reference = preprocess(dataset, plan, tmp_path / "whole")
    prepared = preprocess(dataset, plan, tmp_path / "cache")
    folder = Path(prepared[3].folder)
    if damage == "shorter":
        os.truncate(folder / "image.npy", 500)
        with pytest.raises(DataError, match=r"image: cannot be read .*; run again: the case is then prepared anew"):
            _ = prepared[3].image
    elif damage == "missing":
        (folder / "label.npy").unlink()
    else:
        (folder / "case.json").write_text("{")
    assert_same(preprocess(dataset, plan, tmp_path / "cache"), reference)


def run(mode: str, root: Path, plan: Plan, folder: Path) -> subprocess.Popen[str]:
    plan.to_json(folder / "plan.json")
    words = [sys.executable, "-c", SCRIPT, mode, str(root), str(folder / "plan.json"), str(folder / "cache")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_midst_of_a_case(root: Path, plan: Plan, tmp_path: Path) -> None:
    """What was finished stays, what was begun is begun anew, nothing half-written is ever taken for a case."""
    dying = run("die", root, plan, tmp_path)
    dying.communicate()
    assert dying.returncode == -signal.SIGKILL
    cache = tmp_path / "cache"
    left = homes(cache)
    assert [path.suffix for path in left] in (["", ".partial"], [".partial", ""])
    finished = next(path for path in left if not path.suffix)
    stamp = (finished / "image.npy").stat().st_mtime_ns
    prepared = preprocess(RawDataset(root), plan, cache)
    assert_same(prepared, preprocess(RawDataset(root), plan, tmp_path / "other"))
    assert len(homes(cache)) == 5
    assert not any(path.suffix for path in homes(cache))
    assert (finished / "image.npy").stat().st_mtime_ns == stamp


def test_three_processes_at_the_same_time(root: Path, plan: Plan, tmp_path: Path) -> None:
    processes = [run("live", root, plan, tmp_path) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert outputs[0].startswith("5 ")
    assert len(homes(tmp_path / "cache")) == 5
    assert_same(
        preprocess(RawDataset(root), plan, tmp_path / "cache"), preprocess(RawDataset(root), plan, tmp_path / "b")
    )


def test_a_full_disk(root: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def full(file, array, **options):
        if array.ndim == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device; free space on the disk"):
        preprocess(RawDataset(root), plan, tmp_path)
    assert homes(tmp_path) == []
    monkeypatch.undo()
    assert len(preprocess(RawDataset(root), plan, tmp_path)) == 5


def test_a_broken_case_stops_with_its_name_and_the_others_stay(own: RawDataset, plan: Plan, tmp_path: Path) -> None:
    path = Path(own.cases[4].images[0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"case_tr_004_0000.nii.gz: voxels: is truncated"):
        preprocess(own, plan, tmp_path / "cache", workers=1)
    assert len(homes(tmp_path / "cache")) == 4


def test_a_folder_that_may_only_be_read(
    own: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is used, though nothing can be noted."""
    first = preprocess(own, plan, tmp_path / "cache")
    moved = RawDataset(shutil.copytree(own.root, tmp_path / "moved"))

    def refused(path, write, **options):
        raise DataError(path, "file", "cannot be written: Permission denied", "choose another folder")

    monkeypatch.setattr(cache_module, "write_whole", refused)
    assert_same(preprocess(moved, plan, tmp_path / "cache"), first)


def test_a_lock_that_cannot_be_taken(root: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(lock):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(cache_module.FileLock, "acquire", refused)
    with pytest.raises(DataError, match="cannot be written: Permission denied; check the folder and its permissions"):
        preprocess(RawDataset(root), plan, tmp_path)


def test_a_folder_that_cannot_be_made(root: Path, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        preprocess(RawDataset(root), plan, tmp_path / "file" / "cache")


def test_test_cases_without_labels(tmp_path: Path, plan: Plan) -> None:
    root = write_synthetic(tmp_path / "data", 1, (16, 14, 12), test_cases=1)
    shutil.rmtree(root / "labelsTs")
    dataset = RawDataset(root)
    (case,) = preprocess(dataset, plan, tmp_path / "cache", cases=dataset.test_cases)
    assert case.label is None
    assert case.image.ndim == 4


# ---- patches


class Case:
    """A case in memory."""

    def __init__(self, shape: tuple[int, ...], labelled: dict[int, list[tuple[int, ...]]]) -> None:
        self.image = np.arange(1, 1 + 2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
        self.label = np.zeros(shape, np.uint8)
        rows = [[value, *place] for value, places in sorted(labelled.items()) for place in places]
        for value, *place in rows:
            self.label[tuple(place)] = value
        self.locations = np.array(rows, np.int32).reshape(-1, 1 + len(shape))


def test_patches_lie_inside_and_everywhere() -> None:
    case, generator = Case((6, 7, 8), {}), np.random.default_rng(0)
    corners = set()
    for _ in range(400):
        image, label = sample_patch(case, (4, 5, 6), generator, foreground=True)
        assert (image.shape, label.shape, image.dtype) == ((2, 4, 5, 6), (4, 5, 6), np.float32)
        assert (image > 0).all()
        corners.add(float(image[0, 0, 0, 0]))
        z, y, x = np.unravel_index(int(image[0, 0, 0, 0]) - 1, (6, 7, 8))
        np.testing.assert_array_equal(image, case.image[:, z : z + 4, y : y + 5, x : x + 6])
    assert len(corners) == 27


def test_patches_larger_than_the_case_are_padded() -> None:
    case = Case((3, 9, 4), {1: [(2, 8, 3)]})
    for foreground in (True, False):
        image, label = sample_patch(case, (5, 4, 6), np.random.default_rng(0), foreground=foreground)
        assert ((image[0] > 0).sum(), (image[0, 1:4, :, 1:5] > 0).all()) == (3 * 4 * 4, True)
        assert (label[image[0] == 0] == 0).all()


def test_structures_are_drawn_alike_whatever_their_size() -> None:
    large = [(z, y, x) for z in range(10) for y in range(10) for x in range(9)]
    case = Case((12, 12, 12), {1: large, 2: [(11, 11, 11)]})
    generator = np.random.default_rng(0)
    centres = [sample_patch(case, (1, 1, 1), generator, foreground=True)[1].item() for _ in range(300)]
    assert set(centres) == {1, 2}
    assert 0.4 < centres.count(2) / 300 < 0.6
    anywhere = [sample_patch(case, (1, 1, 1), generator)[1].item() for _ in range(300)]
    assert anywhere.count(2) < 10


def test_slices() -> None:
    case = Case((5, 6, 7), {1: [(3, 1, 1)]})
    image, label = sample_patch(case, (4, 4), np.random.default_rng(0), foreground=True)
    assert (image.shape, label.shape) == ((2, 4, 4), (4, 4))
    assert label.sum() == 1
    assert float(image[0].min()) > 3 * 42


def test_patches_follow_the_generator() -> None:
    case = Case((9, 9, 9), {1: [(1, 2, 3), (5, 5, 5)]})
    first, second = (
        [sample_patch(case, (4, 4, 4), generator, foreground=True)[0] for _ in range(5)]
        for generator in (np.random.default_rng(7), np.random.default_rng(7))
    )
    np.testing.assert_array_equal(first, second)


def test_only_what_a_patch_needs_is_read(tmp_path: Path) -> None:
    """The file is sparse, far larger than the memory that may be used."""
    shape = (1, 2000, 1000, 1000)
    np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.float32, shape).flush()
    script = (
        "import resource, sys, numpy as np\n"
        "from mamba_datasets.volumes.patches import cut\n"
        "image = np.load(sys.argv[1], mmap_mode='r')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert cut(image, (700, 500, 500), (40, 64, 64)).shape == (1, 40, 64, 64)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "image.npy")], capture_output=True, text=True)
    assert int(result.stdout) < 100_000


def test_locations_are_a_part_of_large_structures(plan: Plan) -> None:
    label = np.zeros((40, 60, 50), np.uint8)
    label[:20] = 1
    label[30, 30, 30] = 2
    rows = find_locations(label, plan)
    assert [(rows[:, 0] == value).sum() for value in (0, 1, 2)] == [0, 10_000, 1]
    np.testing.assert_array_equal(rows, find_locations(label, plan))
    assert len(np.unique(rows[rows[:, 0] == 1], axis=0)) == 10_000
    assert (label[tuple(rows[:, 1:].T)] == rows[:, 0]).all()
    ignoring = replace(plan, labels={"background": 0, "organ": 1, "ignore": 2})
    assert set(find_locations(label, ignoring)[:, 0]) == {0, 1}
    assert find_locations(np.zeros((3, 3, 3), np.uint8), plan).shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ('{"train": []}', "expected a list of folds"),
        ("[]", "expected a list of folds"),
        ('[{"train": ["a"]}]', "fold 0: expected the names of cases under train and val"),
        ('[{"train": ["a"], "val": [2]}]', "fold 0: expected the names of cases"),
        ('[{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["x"]}]', "fold 1: there is no training case 'x'"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "fold 0: 'b' is on both sides"),
        ('[{"train": ["a"], "val": []}]', "fold 0: has no case on one side"),
    ],
)
def test_files_that_are_no_folds_are_refused(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_folds(path, ["a", "b", "c"])


def test_folds_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text('[{"train": ["c", "a"], "val": ["b", "gone"]}]', encoding="utf-8")
    assert read_folds(path, "abcd", lacking=True) == [(["a", "c"], ["b"])]
    with pytest.raises(DataError, match="cannot be read"):
        read_folds(tmp_path / "none.json", "abcd")


def test_folds() -> None:
    names = [f"case{number:02d}" for number in range(12)]
    dealt = folds(reversed(names))
    assert dealt[0][1] == ["case00", "case05", "case10"]
    assert sorted(name for _, val in dealt for name in val) == names
    assert all(sorted(train + val) == names for train, val in dealt)
    with pytest.raises(DataError, match="expected 2 to 3 folds for 3 cases, found 5"):
        folds(names[:3])
    with pytest.raises(DataError, match="expected at least 2 to hold one out, found 1; give more cases"):
        folds(names[:1])
