"""A folder of images: classes in a fixed order, and every way a folder can be wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mamba_datasets.errors import DataError
from mamba_datasets.images import ImageFolder


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; red tells the picture."""
    folder = tmp_path / "data"
    for value, name in enumerate(["cat/b.png", "cat/A.PNG", "cat/deep/c.Jpeg", "dog/a.png", "dog/b.bmp"]):
        picture(folder / name, value * 50)
    (folder / "README.md").write_text("about")
    (folder / "cat" / ".DS_Store").write_bytes(b"\0")
    (folder / "dog" / "Thumbs.db").write_bytes(b"\0")
    return folder


def test_items_in_order(root: Path) -> None:
    data = ImageFolder(root)
    assert data.classes == ["cat", "dog"]
    assert [os.path.relpath(path, root) for path in data.paths] == [
        "cat/A.PNG",
        "cat/b.png",
        "cat/deep/c.Jpeg",
        "dog/a.png",
        "dog/b.bmp",
    ]
    assert data.targets == [0, 0, 0, 1, 1]
    image, target = data[1]
    assert (image.mode, image.size, image.getpixel((0, 0)), target) == ("RGB", (8, 6), (0, 0, 0), 0)
    data.transform = np.asarray
    assert data[0][0].shape == (6, 8, 3)


def test_split(root: Path) -> None:
    whole = ImageFolder(root.parent, split="data")
    assert len(whole) == 5
    with pytest.raises(DataError, match=r"split 'dat': there is no such folder; did you mean 'data'"):
        ImageFolder(root.parent, split="dat")


def test_fixed_classes_keep_their_indices(root: Path) -> None:
    data = ImageFolder(root, classes=["dog", "cat"])
    assert data.classes == ["dog", "cat"]
    assert data.targets == [1, 1, 1, 0, 0]


def empty_class(root: Path) -> None:
    (root / "bird").mkdir()


def one_class(root: Path) -> None:
    for file in (root / "dog").iterdir():
        file.unlink()
    (root / "dog").rmdir()


def same_class(root: Path) -> None:
    picture(root / "Cat" / "a.png")


def outside(root: Path) -> None:
    picture(root / "lost.JPG")


def unknown_ending(root: Path) -> None:
    (root / "dog" / "a.heic").write_bytes(b"1")


def link_outside(root: Path) -> None:
    (root / "dog" / "z.png").symlink_to(picture(root.parent / "secret.png"))


def link_to_nothing(root: Path) -> None:
    (root / "dog" / "z.png").symlink_to(root / "gone.png")


def link_to_folder(root: Path) -> None:
    (root / "dog" / "loop").symlink_to(root / "dog")


def class_link(root: Path) -> None:
    picture(root.parent / "elsewhere" / "a.png")
    (root / "bird").symlink_to(root.parent / "elsewhere")


def splits(root: Path) -> None:
    for name, split in (("cat", "train"), ("dog", "val")):
        (root / name).rename(root / split)


def no_class(root: Path) -> None:
    splits(root)
    for name in ("train", "val"):
        (root / name).rename(root.parent / name)


BAD: list[tuple[Callable[[Path], None], str]] = [
    (empty_class, r"bird: class: holds no image; fill this class"),
    (one_class, r"classes: found one class only, 'cat'; "),
    (same_class, r"classes: 'Cat' and 'cat' differ in case only; "),
    (outside, r"lost\.JPG: class: this image lies in no class; "),
    (unknown_ending, r"a\.heic: name: expected an image's ending \(\.jpg .*; rename it"),
    (link_outside, r"z\.png: link: is a link that leaves the data set, to .*secret\.png; "),
    (link_to_nothing, r"z\.png: link: is a link to nothing; "),
    (link_to_folder, r"loop: link: is a link to a folder, which may count images twice; "),
    (class_link, r"bird: link: is a link that leaves the data set"),
    (splits, r"classes: its folders are splits \(train, val\); name one: split="),
    (no_class, r"classes: expected a folder a class, found none; "),
]


@pytest.mark.parametrize(("spoil", "line"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_folder_has_its_one_line(spoil: Callable[[Path], None], line: str, root: Path) -> None:
    spoil(root)
    with pytest.raises(DataError, match=line) as caught:
        ImageFolder(root)
    assert str(caught.value).startswith(str(root))


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (["cat", "dog", "bird"], r"class 'bird' has no folder; add it, or leave it out of classes"),
        (["cat"], r"folder 'dog' is none of the given classes"),
        (["cat", "dog", "cat"], r"the given classes repeat a name"),
    ],
)
def test_fixed_classes_must_be_those_of_the_folder(classes: list[str], line: str, root: Path) -> None:
    with pytest.raises(DataError, match=line):
        ImageFolder(root, classes=classes)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder: cannot be read: No such file or directory; check the path"):
        ImageFolder(tmp_path / "none")


def test_a_missing_root_says_where_a_relative_path_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"check the path, which begins at {re.escape(str(tmp_path))}$"):
        ImageFolder("none")


def test_split_that_is_a_link(root: Path) -> None:
    whole = root.parent / "whole"
    whole.mkdir()
    (whole / "train").symlink_to(root)
    with pytest.raises(DataError, match=r"train: link: is a link that leaves the data set, to .*data; put the folder"):
        ImageFolder(whole, split="train")
    root.rename(whole / "test")
    (whole / "val").symlink_to(whole / "test")
    assert len(ImageFolder(whole, split="val")) == 5


def test_links_within_and_a_linked_root_are_fine(root: Path) -> None:
    (root / "dog" / "c.png").symlink_to(root / "dog" / "a.png")
    (root.parent / "link").symlink_to(root)
    assert len(ImageFolder(root.parent / "link")) == 6


@pytest.mark.parametrize("workers", [0, 1])  # torch waits 5 s for a worker that failed
def test_training_stops_at_a_broken_image(workers: int, root: Path) -> None:
    broken = root / "dog" / "a.png"
    broken.write_bytes(b"nothing of the kind")
    loader = DataLoader(ImageFolder(root, transform=np.asarray), batch_size=2, num_workers=workers, collate_fn=list)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert caught.value.path == str(broken)
    assert caught.value.where == "file"
    assert "\n" not in str(caught.value)
    assert "found text ('nothing of the kind')" in caught.value.expected


def listed(root: Path, *names: str) -> Path:
    file = root.parent / "broken.json"
    file.write_text(json.dumps({"kind": "images", "checked": "elsewhere", "broken": {name: ["why"] for name in names}}))
    return file


def test_leave_out(root: Path) -> None:
    outside(root)
    unknown_ending(root)
    link_to_folder(root)
    list_file = listed(root, "lost.JPG", "dog/a.heic", "dog/loop", "cat/b.png", "gone.png")
    data = ImageFolder(root, leave_out=list_file)
    assert len(data) == 4
    assert str(root / "cat" / "b.png") not in data.paths
    in_split = listed(root, "data/cat/b.png", "data/lost.JPG", "data/dog/a.heic", "data/dog/loop")
    assert len(ImageFolder(root.parent, split="data", leave_out=in_split)) == 4


def test_leaving_out_a_whole_class_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="dog: class: holds no image"):
        ImageFolder(root, leave_out=listed(root, "dog/a.png", "dog/b.bmp"))


@pytest.mark.parametrize("content", ["", "[]", '{"broken": 3}', '{"broken": [1]}', "\0"])
def test_no_list_of_broken_files(content: str, root: Path) -> None:
    file = root.parent / "broken.json"
    file.write_text(content)
    with pytest.raises(DataError, match="is no list that a check wrote; write it with: mamba-apps check"):
        ImageFolder(root, leave_out=file)


def test_list_of_another_folder(root: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 1 files lies in .*; it was written for elsewhere"):
        ImageFolder(root, leave_out=listed(root, "x/y.png"))
    with pytest.raises(DataError, match="cannot be read"):
        ImageFolder(root, leave_out=root / "none.json")
