"""Images and masks: layouts, partners, and every way a mask can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mamba_datasets.errors import DataError
from mamba_datasets.images import ImagePairs, read_mask

VALUES = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def save(path: Path, values: np.ndarray | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


def pair(images: Path, masks: Path, stem: str) -> None:
    save(images / f"{stem}.jpg", np.full((2, 3, 3), 100, np.uint8))
    save(masks / f"{stem}.png", VALUES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for stem in ("b", "a", "deep/c"):
        pair(folder / "images", folder / "masks", stem)
    return folder


def test_items_in_order(root: Path) -> None:
    data = ImagePairs(root, num_classes=3)
    assert [tuple(str(Path(path).relative_to(root)) for path in paths) for paths in data.paths] == [
        ("images/a.jpg", "masks/a.png"),
        ("images/b.jpg", "masks/b.png"),
        ("images/deep/c.jpg", "masks/deep/c.png"),
    ]
    image, mask_HW = data[0]
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert mask_HW.dtype == np.int64
    np.testing.assert_array_equal(mask_HW, VALUES)
    data.transform = lambda image, mask_HW: (np.asarray(image)[:, ::-1], mask_HW[:, ::-1])
    np.testing.assert_array_equal(data[0][1], VALUES[:, ::-1])


@pytest.mark.parametrize("layout", ["images/training annotations/training", "training/images training/labels"])
def test_splits(layout: str, tmp_path: Path) -> None:
    images, masks = (tmp_path / folder for folder in layout.split())
    pair(images, masks, "a")
    assert len(ImagePairs(tmp_path, split="training")) == 1
    with pytest.raises(DataError, match=r"there is no such folder|expected a folder 'images'"):
        ImagePairs(tmp_path, split="test")
    with pytest.raises(DataError, match=r"holds splits \(training\); name one: split=|expected a folder 'images'"):
        ImagePairs(tmp_path)


def test_named_folders(tmp_path: Path) -> None:
    pair(tmp_path / "x" / "in", tmp_path / "elsewhere", "a")
    assert len(ImagePairs(tmp_path / "x", images="in", masks="../elsewhere")) == 1
    with pytest.raises(DataError, match=r"expected a folder 'images', found in; name it: images="):
        ImagePairs(tmp_path / "x")
    with pytest.raises(DataError, match=r"expected a folder of masks \(masks or labels or annotations\), found none"):
        ImagePairs(tmp_path / "x", images="in")
    with pytest.raises(DataError, match="there is no folder 'out'"):
        ImagePairs(tmp_path / "x", images="in", masks="out")
    (tmp_path / "x" / "labels").mkdir()
    (tmp_path / "x" / "masks").mkdir()
    with pytest.raises(DataError, match="found masks and labels; name it: masks="):
        ImagePairs(tmp_path / "x", images="in")


def missing_mask(root: Path) -> None:
    (root / "masks" / "a.png").unlink()


def missing_image(root: Path) -> None:
    (root / "images" / "a.jpg").unlink()


def two_masks(root: Path) -> None:
    save(root / "masks" / "a.bmp", VALUES)


def unknown_ending(root: Path) -> None:
    (root / "masks" / "a.npy").write_bytes(b"1")


def no_pair(root: Path) -> None:
    for file in root.rglob("*.*"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (missing_mask, r"images/a\.jpg: mask: .*masks has none of this name; add it, or leave out the image"),
        (missing_image, r"masks/a\.png: image: .*images has none of this name; add it, or leave out the mask"),
        (two_masks, r"masks/a\.png: name: its partner is ambiguous: .*masks/a\.bmp has this name too"),
        (unknown_ending, r"masks/a\.npy: name: expected an image's ending"),
        (no_pair, r"layout: .*images holds no image"),
    ],
)
def test_bad_folder_has_its_one_line(spoil: Callable[[Path], None], line: str, root: Path) -> None:
    spoil(root)
    with pytest.raises(DataError, match=line):
        ImagePairs(root)


RGB = np.zeros((2, 3, 3), np.uint8)
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "size": (lambda path: save(path, VALUES.T.copy()), r"size: expected 3x2 as in .*a\.jpg, found 2x3"),
    "value": (
        lambda path: save(path, VALUES + 5),
        r"row 0, column 0: expected 0 to 2 or 255 \(ignored\), found 4, 5, 6",
    ),
    "rgb": (lambda path: save(path, RGB), r"mode: expected one channel of class numbers, found RGB"),
    "alpha": (lambda path: save(path, np.zeros((2, 3, 4), np.uint8)), r"mode: expected one channel .*, found RGBA"),
    "jpeg": (lambda path: save(path, VALUES, format="JPEG"), r"format: a JPEG changes the values of a mask"),
    "instances": (
        lambda path: save(path, np.arange(6, dtype=np.uint16).reshape(2, 3) * 300),
        r"found 300, 600, 900, 1200, 1500; .*foreground=True where values number instances",
    ),
    "text": (lambda path: path.write_text("hello"), r"file: is no image: .* found text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_mask_has_its_one_line(name: str, root: Path) -> None:
    spoil, line = BAD[name]
    spoil(root / "masks" / "a.png")
    data = ImagePairs(root, num_classes=3)
    with pytest.raises(DataError, match=line) as caught:
        list(DataLoader(data, batch_size=None))
    assert caught.value.path == str(root / "masks" / "a.png")
    assert "\n" not in str(caught.value)


def test_broken_image_of_a_pair(root: Path) -> None:
    (root / "images" / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jpg: file: is empty"):
        ImagePairs(root)[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_are_not_changed(dtype: type, tmp_path: Path) -> None:
    values = np.array([[0, 1, 200], [7, 255, 3]], dtype)
    kind = "TIFF" if dtype is np.int32 else "PNG"
    np.testing.assert_array_equal(read_mask(save(tmp_path / "x", values, format=kind)), values)


def test_palette_and_two_values(tmp_path: Path) -> None:
    palette = Image.fromarray(VALUES).copy()
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette(list(range(256)) * 3)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "p.png", palette)), VALUES)
    two = Image.fromarray(VALUES > 1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "1.png", two)), VALUES > 1)


def test_foreground_of_instances(root: Path) -> None:
    save(root / "masks" / "a.png", np.array([[0, 300, 65535], [1, 0, 255]], np.uint16))
    mask_HW = ImagePairs(root, foreground=True)[0][1]
    np.testing.assert_array_equal(mask_HW, [[0, 1, 1], [1, 0, 1]])
    assert mask_HW.dtype == np.int64


def test_zero_label(root: Path) -> None:
    mask_HW = ImagePairs(root, num_classes=2, reduce_zero_label=True)[0][1]
    np.testing.assert_array_equal(mask_HW, [[255, 0, 1], [1, 255, 0]])
    with pytest.raises(DataError, match=r"expected 1 to 1 or 255 \(ignored\), found 2"):
        ImagePairs(root, num_classes=1, reduce_zero_label=True)[0]


@pytest.mark.parametrize("options", [{"reduce_zero_label": True}, {"num_classes": 5}])
def test_foreground_contradicts(options: dict[str, Any], root: Path) -> None:
    with pytest.raises(DataError, match=r"choose one of them|leave it out"):
        ImagePairs(root, foreground=True, **options)


def test_leave_out_drops_the_partner(root: Path) -> None:
    missing_mask(root)
    unknown_ending(root)
    file = root.parent / "broken.json"
    names = ["images/a.jpg", "masks/a.npy", "masks/b.png"]
    file.write_text(json.dumps({"kind": "image-pairs", "checked": "", "broken": {name: ["why"] for name in names}}))
    assert [Path(image).name for image, _ in ImagePairs(root, leave_out=file).paths] == ["c.jpg"]
