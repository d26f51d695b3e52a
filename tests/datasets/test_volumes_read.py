"""Volumes: every format read and written to the bit, every bad file refused in one line with its place and remedy."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mamba_datasets.errors import DataError
from mamba_datasets.volumes import Volume, read_case, read_label, read_volume, write_mask
from mamba_datasets.volumes.volume import mismatch

RANDOM = np.random.default_rng(0)


def save(path: Path, values_xyz: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    image = nibabel.Nifti1Image(values_xyz, np.diag([2.0, 1.0, 0.5, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def whole(*shape: int, high: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, high, shape).astype(dtype)


# ---- NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">i2", "float32", "float64"])
def test_values_axes_and_spacing(tmp_path: Path, name: str, dtype: str) -> None:
    values = RANDOM.integers(0, 100, (3, 4, 5)).astype(dtype)
    volume = read_volume(save(tmp_path / name, values))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], values.transpose())
    assert volume.spacing == (0.5, 1.0, 2.0)
    assert volume.orientation == "RAS"
    volume.array[:] = 0  # callers own it


def test_scaled_values_and_second_version(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(whole(3, 4, 5, dtype=np.int16), np.eye(4))
    image.header.set_slope_inter(2, -10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata().transpose()
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").array[0], expected)


def test_flat_and_trailing_axes(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "flat.nii.gz", whole(6, 7))).shape == (7, 6)
    assert read_volume(save(tmp_path / "one.nii.gz", whole(6, 7, 5, 1))).shape == (5, 7, 6)
    assert read_volume(save(tmp_path / "thin.nii.gz", whole(6, 7, 1))).shape == (1, 7, 6)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
@pytest.mark.parametrize(("dtype", "stored"), [("uint8", "uint8"), ("uint16", "uint16"), ("int64", "uint8")])
def test_a_mask_is_read_again_to_the_bit_and_keeps_the_header(
    tmp_path: Path, name: str, dtype: str, stored: str
) -> None:
    affine = nibabel.affines.from_matvec([[0, 0.1, -2], [-1.5, 0, 0], [0, 3, 0.2]], [7, -8.5, 9])
    source = save(tmp_path / "image.nii.gz", whole(5, 6, 7, dtype=np.int16), affine, descrip=b"scanner 7", cal_max=50)
    image = nibabel.load(source)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)
    nibabel.save(image, source)
    volume = read_volume(source)
    mask = RANDOM.integers(0, 3, volume.shape).astype(dtype)
    write_mask(tmp_path / name, mask, volume)

    written = nibabel.load(tmp_path / name)
    assert written.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(), mask)
    np.testing.assert_array_equal(written.affine, nibabel.load(source).affine)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 4)
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"scanner 7"
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert float(written.header["cal_max"]) == 0
    again = read_label(tmp_path / name)
    np.testing.assert_array_equal(again.array[0], mask)
    assert mismatch(again, volume) is None

    before = (tmp_path / name).read_bytes()
    write_mask(tmp_path / name, mask, again)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_two_places_of_one_volume_are_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(whole(4, 5, 6), np.eye(4))
    image.set_sform(np.diag([-2.0, 1, 1, 1]), 1)
    image.set_qform(np.diag([2.0, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.orientation == "LAS"
    assert volume.notes == ("its sform and qform place it differently; the sform is taken",)
    image.set_qform(np.diag([-2.0, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").notes == ()


def test_labels_in_floating_point(tmp_path: Path) -> None:
    label = read_label(save(tmp_path / "a.nii.gz", whole(3, 4, 5, dtype=np.float32)), [0, 1, 2])
    assert label.array.dtype == np.uint8


# ---- pictures


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures(tmp_path: Path, name: str, dtype: type) -> None:
    mask = RANDOM.integers(0, 200, (5, 6)).astype(dtype)
    like = Volume(mask[None].astype(np.float32), np.eye(4), "memory")
    if name.endswith(".bmp") and dtype == np.uint16:
        with pytest.raises(DataError, match=r"uint16 does not fit this format; name a .nii.gz or .tif file"):
            write_mask(tmp_path / name, mask, like)
        return
    write_mask(tmp_path / name, mask, like)
    again = read_label(tmp_path / name)
    np.testing.assert_array_equal(again.array[0], mask)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array[0], mask)
    assert again.spacing == (1.0, 1.0)


def test_colours_and_palettes(tmp_path: Path) -> None:
    colours = whole(4, 5, 3, high=255)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array, colours.transpose(2, 0, 1))
    with pytest.raises(DataError, match="expected one channel of label numbers, found RGB"):
        read_label(tmp_path / "a.png")
    indices = Image.fromarray(whole(4, 5)).convert("P")
    indices.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label(tmp_path / "p.png").array[0], np.asarray(indices))
    Image.fromarray(whole(4, 5, 4, high=255)).save(tmp_path / "alpha.png")
    with pytest.raises(DataError, match="expected grey or RGB, found RGBA; save it so, without transparency"):
        read_volume(tmp_path / "alpha.png")
    Image.fromarray(whole(16, 16)).save(tmp_path / "j.jpg")
    shutil.copy(tmp_path / "j.jpg", tmp_path / "j.png")
    with pytest.raises(DataError, match="a JPEG changes the values of a mask"):
        read_label(tmp_path / "j.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stacks_of_tiff_pages_with_their_spacing(tmp_path: Path, dtype: type) -> None:
    mask = RANDOM.integers(0, 9, (4, 5, 6)).astype(dtype)
    like = Volume(mask[None].astype(np.float32), np.eye(4), "memory")
    write_mask(tmp_path / "case_0000.tif", mask, like)
    stack = read_volume(tmp_path / "case_0000.tif")
    np.testing.assert_array_equal(stack.array[0], mask)
    assert stack.spacing == (1.0, 1.0, 1.0)
    assert "1 is taken along every axis" in stack.notes[0]
    (tmp_path / "case.json").write_text('{"spacing": [3, 0.5, 0.25]}')
    assert read_volume(tmp_path / "case_0000.tif").spacing == (3.0, 0.5, 0.25)
    (tmp_path / "case.json").write_text('{"spacing": [3, 0.5]}')
    with pytest.raises(DataError, match=r"case.json: spacing: expected 3 positive numbers, found \[3, 0.5\]"):
        read_volume(tmp_path / "case_0000.tif")
    with pytest.raises(DataError, match="has 3 axes, this format 2"):
        write_mask(tmp_path / "case.png", mask, like)


def test_a_stack_that_imagej_wrote_as_one_page(tmp_path: Path) -> None:
    picture = Image.fromarray(whole(4, 5))
    picture.save(tmp_path / "a.tif", description="ImageJ=1.54f\nimages=40\nslices=40\n")
    with pytest.raises(DataError, match="holds 40 slices in one page"):
        read_volume(tmp_path / "a.tif")


# ---- what is refused


def truncated(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if keep < 1 else content[:-2])


def claims(path: Path, dim: tuple[int, int, int]) -> None:
    """Write a header that claims a huge volume, with a few voxels behind it."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2, 2, 2))
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["dim"][1:4] = dim
    content = header.binaryblock + bytes(4) + bytes(16)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def without_steps(path: Path) -> bytes:
    """Return a file's content with an affine of zeros."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348])
    for row in "xyz":
        header[f"srow_{row}"] = 0
    return bytes(header.binaryblock) + content[348:]


def nan(path: Path) -> None:
    values = whole(4, 5, 6, dtype=np.float32)
    values[1, 2, 3] = np.nan
    values[1, 2, 4] = np.inf
    save(path, values)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated .nii.gz": (
        "a.nii.gz",
        lambda p: (save(p, whole(30, 30, 30)), truncated(p, 0.6)),
        "voxels: is truncated",
    ),
    "cut early": ("a.nii.gz", lambda p: (save(p, whole(30, 30, 30)), truncated(p, 0.01)), "header: is truncated"),
    "without its end": ("a.nii.gz", lambda p: (save(p, whole(9, 9, 9)), truncated(p, 1)), "is truncated or damaged"),
    "truncated .nii": ("a.nii", lambda p: (save(p, whole(9, 9, 9)), truncated(p, 0.6)), "the file can hold 296"),
    "cut in its header": ("a.nii", lambda p: (save(p, whole(9, 9, 9)), truncated(p, 0.1)), "header: is truncated"),
    "flipped bits": (
        "a.nii.gz",
        lambda p: (save(p, whole(9, 9, 9, high=255)), p.write_bytes(p.read_bytes()[:-6] + b"\x01\x02" + b"\0" * 4)),
        "is truncated or damaged",
    ),
    "2^40 voxels": ("a.nii", lambda p: claims(p, (16384, 16384, 4096)), "its header claims 1,099,511,627,776"),
    "2^40 voxels, packed": ("a.nii.gz", lambda p: claims(p, (16384, 16384, 4096)), "claims 1,099,511,627,776"),
    "2^31 voxels in 400 bytes": ("a.nii.gz", lambda p: claims(p, (2048, 1024, 1024)), "header claims 2,147,483,648"),
    "no voxel": ("a.nii", lambda p: claims(p, (4, 0, 4)), "expected voxels along every axis"),
    "negative": ("a.nii", lambda p: claims(p, (4, -4, 4)), "expected voxels along every axis"),
    "4-D": ("a.nii.gz", lambda p: save(p, whole(4, 5, 6, 2)), r"expected 2 or 3 axes, found 4: \(4, 5, 6, 2\); save"),
    "NaN": ("a.nii.gz", nan, r"2 are NaN or infinite, the first at \(1, 2, 3\)"),
    "complex": ("a.nii.gz", lambda p: save(p, whole(4, 5, 6, dtype=np.complex64)), "expected one number a voxel"),
    "empty": ("a.nii.gz", lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "text": ("a.nii.gz", lambda p: p.write_text("hello"), "header: is truncated or damaged"),
    "other bytes": ("a.nii", lambda p: p.write_bytes(bytes(range(256)) * 9), "is no NIfTI header"),
    "missing": ("a.nii.gz", lambda p: None, "no such file"),
    "a folder": ("a.nii.gz", lambda p: p.mkdir(), "no such file"),
    "no step": (
        "a.nii",
        lambda p: (save(p, whole(4, 5, 6)), p.write_bytes(without_steps(p))),
        "affine: expected finite steps along 3 axes",
    ),
    "two axes alike": (
        "a.nii.gz",
        lambda p: save(p, whole(4, 5, 6), np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        "two of its axes run the same way",
    ),
    "another format": ("a.nrrd", lambda p: p.write_bytes(b"NRRD"), r"format: knows .nii .nii.gz .png .* found .nrrd"),
    "a broken picture": ("a.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n123"), "a.png: "),
    "a broken stack": (
        "a.tif",
        lambda p: (write_mask(p, whole(9, 40, 40), Volume(np.zeros((1, 9, 40, 40)), np.eye(4), "")), truncated(p, 0.7)),
        "a.tif: ",
    ),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    name, make, match = BAD[case]
    make(tmp_path / name)
    tracemalloc.start()
    with pytest.raises(DataError, match=match) as caught:
        read_volume(tmp_path / name)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_bad_labels(tmp_path: Path) -> None:
    values = whole(4, 5, 6)
    values[3, 2, 1] = 7
    with pytest.raises(DataError, match=r"expected the labels 0, 1, 2, found 7 in 1 voxel, the first at \(3, 2, 1\)"):
        read_label(save(tmp_path / "a.nii.gz", values), [0, 1, 2])
    with pytest.raises(DataError, match=r"expected whole numbers, found 0.5 in 120 voxels"):
        read_label(save(tmp_path / "b.nii.gz", np.full((4, 5, 6), 0.5, np.float32)))
    with pytest.raises(DataError, match=r"expected whole numbers, found nan"):
        read_label(save(tmp_path / "c.nii.gz", np.full((4, 5, 6), np.nan, np.float32)))
    with pytest.raises(DataError, match=r"expected labels from 0, found -1 in"):
        read_label(save(tmp_path / "d.nii.gz", np.full((4, 5, 6), -1, np.int16)))


def test_channels_on_different_grids(tmp_path: Path) -> None:
    one = save(tmp_path / "a_0000.nii.gz", whole(4, 5, 6))
    assert read_case([one, one]).array.shape == (2, 6, 5, 4)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])

    def refused(values: np.ndarray, affine: np.ndarray, match: str) -> None:
        with pytest.raises(DataError, match=match):
            read_case([one, save(tmp_path / "a_0001.nii.gz", values, affine)])

    refused(whole(4, 5, 7), affine, "shape: expected 4 x 5 x 6 voxels as in .*a_0000.nii.gz, found 4 x 5 x 7")
    refused(
        whole(4, 5, 6), np.diag([2.0, 1, 0.6, 1]), "spacing: expected 2 x 1 x 0.5 mm as in .*, found 2 x 1 x 0.6 mm"
    )
    refused(whole(4, 5, 6), np.diag([-2.0, 1, 0.5, 1]), "orientation: expected RAS as in .*, found LAS")
    moved = affine.copy()
    moved[0, 3] = 1.0
    refused(whole(4, 5, 6), moved, "affine: expected the world coordinates of .*, found a corner 1 mm away")
    moved[0, 3] = 1e-4  # rounding of a header
    assert read_case([one, save(tmp_path / "a_0001.nii.gz", whole(4, 5, 6), moved)]).channels == 2


# ---- writing


def test_a_mask_of_another_kind_or_shape(tmp_path: Path) -> None:
    like = Volume(np.zeros((1, 4, 5, 6), np.float32), np.eye(4), "memory")
    for mask, match in [
        (whole(4, 5, 7), r"expected the shape \(4, 5, 6\) of memory, found \(4, 5, 7\)"),
        (np.zeros((4, 5, 6), np.float32), "expected labels from 0, found float32"),
        (np.full((4, 5, 6), -1, np.int16), "expected labels from 0, found int16"),
    ]:
        with pytest.raises(DataError, match=match):
            write_mask(tmp_path / "m.nii.gz", mask, like)
    with pytest.raises(DataError, match="cannot be written: No such file or directory; check the folder"):
        write_mask(tmp_path / "nowhere" / "m.nii.gz", whole(4, 5, 6), like)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.tif"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    """The limit on a file's size stands for the disk: the write fails in its midst."""
    script = (
        "import sys, numpy as np\n"
        "from mamba_datasets.volumes import Volume, write_mask\n"
        "shape = (40, 64, 64)\n"
        "like = Volume(np.zeros((1, *shape), np.float32), np.eye(4), 'memory')\n"
        "try:\n"
        "    write_mask(sys.argv[1], np.random.default_rng(0).integers(0, 250, shape, np.uint8), like)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    (tmp_path / name).write_text("the mask of before")
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True, preexec_fn=limit
    )
    assert result.stdout.startswith(f"DataError {tmp_path / name}: file: cannot be written: File too large; free space")
    assert result.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "the mask of before"


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    like = Volume(np.zeros((1, 4, 5, 6), np.float32), np.eye(4), "memory")
    with pytest.raises(DataError, match="No space left on device; free space"):
        write_mask(tmp_path / "m.nii.gz", whole(4, 5, 6), like)
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_library_before_it_reads() -> None:
    script = (
        "import sys, json\n"
        "import mamba_datasets.volumes.read, mamba_datasets.volumes.cache, mamba_datasets.volumes.planning\n"
        "import mamba_datasets.volumes.check\n"
        "print(json.dumps([name for name in ('nibabel', 'monai', 'scipy', 'torch') if name in sys.modules]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
