"""nnU-Net's raw layout: what is found, what is refused, and the check that lists every problem with its path."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from mamba_datasets.errors import DataError
from mamba_datasets.registry import check, guess_kind
from mamba_datasets.volumes import RawDataset, fingerprint, make_plan, preprocess, read_label, write_synthetic
from mamba_datasets.volumes.raw import description_of
from mamba_recipes.cli.check import main

GOOD: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "file_ending": ".nii.gz",
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync, which matters to a power cut only and is slow on a busy disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_synthetic(tmp_path / "Dataset007_Toy", 5, (14, 12, 10), channels=2, test_cases=2)


def change(path: Path, values: Callable[[np.ndarray], np.ndarray] = np.asarray, affine: Any = None) -> None:
    """Write a file anew with other values or another affine."""
    image = nibabel.load(path)
    array = values(np.asarray(image.dataobj).copy())
    nibabel.save(nibabel.Nifti1Image(array, image.affine if affine is None else affine), path)


def set_voxel(value: float, dtype: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    def put(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[3, 4, 5] = value
        return array

    return put


def test_what_is_found(root: Path) -> None:
    dataset = RawDataset(root)
    assert (dataset.name, dataset.file_ending, len(dataset)) == ("Ellipsoids", ".nii.gz", 5)
    assert dataset.labels == GOOD["labels"]
    assert dataset.channel_names == {0: "contrast 0", 1: "contrast 1"}
    assert [case.name for case in dataset.cases] == [f"case_tr_{number:03d}" for number in range(5)]
    assert [case.name for case in dataset.test_cases] == ["case_ts_000", "case_ts_001"]
    case = dataset["case_tr_002"]
    assert [os.path.relpath(path, root) for path in (*case.images, case.label)] == [
        "imagesTr/case_tr_002_0000.nii.gz",
        "imagesTr/case_tr_002_0001.nii.gz",
        "labelsTr/case_tr_002.nii.gz",
    ]
    volume, label = dataset.read(case)
    assert volume.channels == 2
    assert set(np.unique(label.array)) == {0, 1, 2}
    assert np.median(volume.array[1][label.array[0] == 1]) == pytest.approx(600, abs=20)
    with pytest.raises(DataError, match="case 'nobody': there is no such training case"):
        dataset["nobody"]
    (root / "imagesTr" / ".DS_Store").write_text("")
    (root / "imagesTr" / "notes.txt").write_text("")
    shutil.rmtree(root / "labelsTs")
    assert [case.label for case in RawDataset(root).test_cases] == [None, None]
    shutil.rmtree(root / "imagesTs")
    assert RawDataset(root).test_cases == []


def test_colours_and_stacks(tmp_path: Path) -> None:
    """A picture in colours is one file of three channels; pages of a TIFF are slices."""
    random = np.random.default_rng(0)
    description = {**GOOD, "channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "flat" / folder).mkdir(parents=True)
        (tmp_path / "deep" / folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 255, (9, 8, 3), np.uint8)).save(tmp_path / f"flat/imagesTr/{name}_0000.png")
        Image.fromarray(random.integers(0, 3, (9, 8), np.uint8)).save(tmp_path / f"flat/labelsTr/{name}.png")
        for kind, high in (("imagesTr", 255), ("labelsTr", 3)):
            pages = [Image.fromarray(random.integers(0, high, (9, 8), np.uint8)) for _ in range(4)]
            end = "_0000" if kind == "imagesTr" else ""
            pages[0].save(tmp_path / f"deep/{kind}/{name}{end}.tif", save_all=True, append_images=pages[1:])
            (tmp_path / f"deep/{kind}/{name}.json").write_text('{"spacing": [4, 1, 1]}')
    (tmp_path / "flat" / "dataset.json").write_text(json.dumps(description))
    volume, label = RawDataset(tmp_path / "flat").read(RawDataset(tmp_path / "flat").cases[0])
    assert (volume.array.shape, label.array.shape) == ((3, 9, 8), (1, 9, 8))
    assert guess_kind(tmp_path / "flat") == "volumes"
    report = check(tmp_path / "flat")
    assert report.ok
    assert report.notes[0] == "sizes: 8 x 9 voxels"

    description = {**GOOD, "channel_names": {"0": "EM"}, "file_ending": ".tif"}
    (tmp_path / "deep" / "dataset.json").write_text(json.dumps(description))
    deep = RawDataset(tmp_path / "deep")
    volume, label = deep.read(deep.cases[1])
    assert (volume.shape, volume.spacing, label.shape) == ((4, 9, 8), (4.0, 1.0, 1.0), (4, 9, 8))
    report = check(tmp_path / "deep")
    assert report.ok
    assert report.notes[1] == "spacings: 1 x 1 x 4 mm"
    known = fingerprint(deep, tmp_path / "cache")
    assert known.spacings == ((4.0, 1.0, 1.0),) * 2
    for path in tmp_path.glob("deep/*/*.json"):
        path.write_text('{"spacing": [2, 1, 1]}')
    assert fingerprint(deep, tmp_path / "cache").spacings == ((2.0, 1.0, 1.0),) * 2
    assert len(preprocess(deep, make_plan(known), tmp_path / "cache")) == 2

    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "flat/imagesTr/b_0000.png")
    with pytest.raises(DataError, match=r"b_0000.png: channels: expected 3 \(R, G, B\), found 1"):
        RawDataset(tmp_path / "flat").read(RawDataset(tmp_path / "flat").cases[1])
    assert "channels" in [finding.where for finding in check(tmp_path / "flat").findings]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channel_names": None}, "channel_names: expected the name of each channel, found None"),
        ({"channel_names": {"1": "T1"}}, "channel_names: expected 0 to 0, found 1"),
        ({"channel_names": ["T1"]}, "expected the name of each channel"),
        ({"labels": {}}, "labels: expected the value of each label"),
        ({"labels": {"0": "background", "1": "organ"}}, "expected name: value, found '0': 'background'"),
        ({"labels": {"background": 0, "organ": 2}}, r"expected the values 0, 1, 2, … once each, found \[0, 2\]"),
        ({"labels": {"background": 0, "organ": 1, "other": 1}}, r"once each, found \[0, 1, 1\]"),
        ({"labels": {"background": 0}}, r"found \[0\]"),
        ({"labels": {"background": 0, "organ": 1.5}}, "labels, 'organ': expected a whole number, found 1.5"),
        ({"labels": {"background": 0, "organ": [1, 2], "core": 2}}, "'organ' is a region, made of several labels"),
        (
            {"labels": {"background": 0, "ignore": 1, "organ": 2}},
            "labels, 'ignore': expected the highest value, found 1",
        ),
        ({"file_ending": ".nrrd"}, "file_ending: expected one of .nii .nii.gz .png .* found '.nrrd'; convert them"),
        ({"file_ending": None}, 'file_ending: is missing; state it, such as "file_ending": ".nii.gz"'),
        (
            {"file_ending": None, "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "organ"}},
            "layout: is that of the Medical Segmentation Decathlon and nnU-Net 1, .*nnUNetv2_convert_MSD_dataset",
        ),
        ({"dataset": {"a": {}}}, "lists of files are not supported; lay them out in imagesTr and labelsTr"),
    ],
)
def test_descriptions_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        description_of({**GOOD, **changes}, "dataset.json", "toy")


def test_descriptions_of_other_times() -> None:
    """The first version's word for channels, and a label to be ignored."""
    content = {"modality": {"0": "CT"}, "labels": {"background": 0, "a": 1, "ignore": 2}, "file_ending": ".nii"}
    description = description_of(content, "dataset.json", "toy")
    assert (description.name, description.channel_names) == ("toy", {0: "CT"})
    assert description.labels["ignore"] == 2


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"layout: expected dataset.json, imagesTr and labelsTr, found no folder"):
        RawDataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        RawDataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match=r"layout: imagesTr holds no CASE_0000.nii.gz"):
        RawDataset(tmp_path)


# ---- the check


@pytest.mark.parametrize("missing", ["dataset.json", "imagesTr", "labelsTr"])
def test_a_folder_that_lacks_a_part_is_still_one_of_volumes(root: Path, missing: str) -> None:
    gone = root / missing
    gone.unlink() if gone.is_file() else shutil.rmtree(gone)
    report = check(root)
    assert report.kind == "volumes"
    assert missing in str(report.findings[0])


def test_a_good_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guess_kind(root) == "volumes"
    report = check(root)
    assert report.ok
    assert report.summary == "Ellipsoids: 5 training cases, 2 test cases, 2 channels"
    assert report.notes[1:] == (
        "spacings: 1 x 1 x 1 mm",
        "orientations: RAS (7)",
        "labels: 0 background (in 7 of 7), 1 organ (in 7 of 7), 2 lesion (in 7 of 7)",
    )
    assert main([str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{root}: {report.summary}"


FLIPPED = np.diag([-1.0, 1, 1, 1])
SHIFTED = np.eye(4) + 0.4 * np.eye(4, k=3)
WIDER = np.diag([1.0, 1, 1.2, 1])


def mirrored(path: Path) -> None:
    change(path, affine=FLIPPED)


PROBLEMS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "an image without a label": (
        "labelsTr/case_tr_001.nii.gz",
        Path.unlink,
        "imagesTr/case_tr_001_0000.nii.gz: label: labelsTr has no case_tr_001.nii.gz; add it",
    ),
    "a channel is missing": (
        "imagesTr/case_tr_001_0001.nii.gz",
        Path.unlink,
        "imagesTr/case_tr_001_0000.nii.gz: channels: expected 2 files for case_tr_001, found _0001 missing",
    ),
    "a channel too many": (
        "imagesTr/case_tr_001_0001.nii.gz",
        lambda path: shutil.copy(path, str(path).replace("_0001.nii", "_0002.nii")),
        "channels: expected 2 files for case_tr_001, found _0002 unknown; make the files agree with dataset.json's",
    ),
    "no channel in its name": (
        "imagesTr/case_tr_001_0001.nii.gz",
        lambda path: shutil.copy(path, path.with_name("scan.nii.gz")),
        "imagesTr/scan.nii.gz: name: expected the channel at its end, such as _0000; rename it",
    ),
    "truncated": (
        "imagesTr/case_tr_001_0001.nii.gz",
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        "imagesTr/case_tr_001_0001.nii.gz: voxels: is truncated",
    ),
    "a truncated label": (
        "labelsTr/case_tr_001.nii.gz",
        lambda path: path.write_bytes(path.read_bytes()[:-12]),
        "labelsTr/case_tr_001.nii.gz: voxels: is truncated or damaged (Compressed file ended before the end",
    ),
    "a value outside of the set": (
        "labelsTr/case_tr_001.nii.gz",
        lambda path: change(path, set_voxel(9, np.uint8)),
        "labelsTr/case_tr_001.nii.gz: labels: expected the labels 0, 1, 2, found 9 in 1 voxel, the first at (3, 4, 5)",
    ),
    "another shape": (
        "labelsTr/case_tr_001.nii.gz",
        lambda path: change(path, lambda array: array[1:]),
        "labelsTr/case_tr_001.nii.gz: shape: expected",
    ),
    "another spacing": (
        "labelsTr/case_tr_001.nii.gz",
        lambda path: change(path, affine=WIDER),
        "labelsTr/case_tr_001.nii.gz: spacing: expected 1 x 1 x 1 mm",
    ),
    "another orientation": (
        "labelsTr/case_tr_001.nii.gz",
        mirrored,
        "labelsTr/case_tr_001.nii.gz: orientation: expected RAS",
    ),
    "another affine": (
        "imagesTr/case_tr_001_0001.nii.gz",
        lambda path: change(path, affine=SHIFTED),
        "imagesTr/case_tr_001_0001.nii.gz: affine: expected the world coordinates of",
    ),
    "NaN": (
        "imagesTr/case_tr_001_0000.nii.gz",
        lambda path: change(path, set_voxel(np.nan)),
        "imagesTr/case_tr_001_0000.nii.gz: voxels: 1 are NaN or infinite, the first at (3, 4, 5)",
    ),
    "an empty label": (
        "labelsTr/case_tr_001.nii.gz",
        lambda path: change(path, np.zeros_like),
        "labelsTr/case_tr_001.nii.gz: labels: every voxel is background",
    ),
    "four axes": (
        "imagesTr/case_tr_001_0000.nii.gz",
        lambda path: change(path, lambda array: np.stack([array, array], -1)),
        "imagesTr/case_tr_001_0000.nii.gz: shape: expected 2 or 3 axes, found 4",
    ),
    "2^40 voxels": (
        "imagesTr/case_tr_001_0000.nii.gz",
        lambda path: huge(path),
        "imagesTr/case_tr_001_0000.nii.gz: header: at most 4,294,967,296 voxels are read, its header claims 1,099,511",
    ),
}


def huge(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header["dim"][:4] = (3, 16384, 16384, 4096)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_problem_is_listed_with_its_path(root: Path, problem: str) -> None:
    name, spoil, expected = PROBLEMS[problem]
    spoil(root / name)
    report = check(root)
    assert len(report.findings) == 1
    assert expected in str(report.findings[0])
    assert report.findings[0].path.startswith(str(root))
    assert not report.summary


def test_a_label_without_an_image(root: Path) -> None:
    for channel in range(2):
        (root / "imagesTr" / f"case_tr_003_{channel:04d}.nii.gz").unlink()
    findings = [str(finding) for finding in check(root).findings]
    expected = "labelsTr/case_tr_003.nii.gz: image: imagesTr has no case_tr_003_0000.nii.gz; add it"
    assert len(findings) == 1
    assert expected in findings[0]
    with pytest.raises(DataError, match=r"case_tr_003.nii.gz: image: imagesTr has no"):
        RawDataset(root)


def test_all_problems_at_once_and_leaving_them_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command lists all; the list that it writes leaves these cases out, and nothing else."""
    for number, problem in enumerate(["truncated", "NaN", "another affine", "a value outside of the set"]):
        name, spoil, _ = PROBLEMS[problem]
        spoil(root / name.replace("tr_001", f"tr_{number:03d}"))
    out = tmp_path / "broken.json"
    assert main([str(root), "--write-broken", str(out)]) == 2
    lines = capsys.readouterr().out.splitlines()
    for number, where in enumerate(["voxels", "voxels", "affine", "labels"]):
        assert sum(f"case_tr_{number:03d}" in line and f": {where}: " in line for line in lines) == 1
    dataset = RawDataset(root, leave_out=out)
    assert [case.name for case in dataset.cases] == ["case_tr_004"]
    assert len(dataset.test_cases) == 2


def test_cases_that_did_not_arrive_are_noted(root: Path) -> None:
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    assert not any("states" in note for note in check(root).notes)
    path.write_text(json.dumps({**content, "numTraining": 260}))
    assert check(root).notes[0] == "dataset.json states 260 training cases, 5 are here"
    path.write_text(json.dumps({**content, "numTraining": "many"}))
    assert check(root).ok


def test_single_files_and_copies(root: Path) -> None:
    image = root / "imagesTr" / "case_tr_000_0000.nii.gz"
    assert guess_kind(image) == "volumes"
    assert check(image).summary == "1 volume"
    change(image, set_voxel(np.inf))
    assert [finding.where for finding in check(image).findings] == ["voxels"]
    for channel in range(2):
        folder = root / "imagesTr"
        shutil.copy(folder / f"case_tr_001_{channel:04d}.nii.gz", folder / f"case_tr_002_{channel:04d}.nii.gz")
    shutil.copy(root / "labelsTr" / "case_tr_001.nii.gz", root / "labelsTr" / "case_tr_002.nii.gz")
    assert any("1 content is in one class twice" in note for note in check(root).notes)


def test_thick_slices_are_noted(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path, 2, (12, 12, 12), spacing=(1.0, 1.0, 4.0))
    assert any("2 with slices over 3 times as thick" in note for note in check(root).notes)


def test_made_up_data_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write_synthetic(tmp_path / name, 2, (12, 12, 12), seed=3) for name in "ab")
    for path in sorted(first.rglob("*.nii.gz")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    other = write_synthetic(tmp_path / "c", 2, (12, 12, 12), seed=4)
    names = ["labelsTr/case_tr_000.nii.gz", "labelsTr/case_tr_001.nii.gz"]
    labels = [read_label(folder / name).array for folder in (first, other) for name in names]
    assert len({label.tobytes() for label in labels}) == 4
