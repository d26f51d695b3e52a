"""The check of images and pairs: every problem is listed, by the API and by the command, and can then be left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mamba_datasets.broken import write_broken
from mamba_datasets.errors import DataError
from mamba_datasets.images import ImageFolder, ImagePairs
from mamba_datasets.registry import check, guess_kind
from mamba_recipes.cli.check import main


def picture(path: Path, seed: int, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def classes(folder: Path, seed: int = 0) -> None:
    for number, name in enumerate(["cat/a.png", "cat/b.jpg", "dog/a.png", "dog/b.png", "dog/c.png"]):
        picture(folder / name, seed + number)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    classes(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for number, stem in enumerate("abcdef"):
        picture(tmp_path / "pairs" / "images" / f"{stem}.jpg", number)
        mask = np.random.default_rng(number).integers(0, 3, (12, 16), np.uint8)
        (tmp_path / "pairs" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "pairs" / "masks" / f"{stem}.png")
    return tmp_path / "pairs"


def test_good_folder(root: Path) -> None:
    report = check(root)
    assert report.ok
    assert report.kind == "images"
    assert report.summary == "5 images of 2 classes"
    assert report.notes == ("cat (2), dog (3)", "sizes: 16x12 (5)", "modes: RGB (5)")


def test_good_splits(tmp_path: Path) -> None:
    for seed, split in enumerate(["test", "train"]):
        classes(tmp_path / split, 10 * seed)
    report = check(tmp_path)
    assert report.summary == "10 images of 2 classes in train (5), test (5)"
    assert report.notes[:2] == ("train: cat (2), dog (3)", "test: cat (2), dog (3)")
    shutil.rmtree(tmp_path / "test" / "cat")
    picture(tmp_path / "lost.png", 30)
    assert [finding.expected for finding in check(tmp_path).findings] == [
        "this image lies in no class",
        "class 'cat' has no folder",
    ]


def test_flat_folder_and_single_image(root: Path) -> None:
    flat = check(root / "dog")
    assert flat.summary == "3 images"
    assert "there are no class folders" in flat.notes[0]
    assert check(root / "dog" / "a.png").summary == "1 image"
    (root / "dog" / "a.png").write_bytes(b"")
    assert [finding.expected for finding in check(root / "dog" / "a.png").findings] == ["is empty (0 bytes)"]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="what it holds fits no kind of data; name one: --as "):
        check(tmp_path)
    assert [finding.expected for finding in check(tmp_path, "images").findings] == ["holds no image"]


def test_kinds_of_folders(root: Path, pairs: Path, tmp_path: Path) -> None:
    assert guess_kind(root) == "images"
    assert guess_kind(pairs) == "image-pairs"
    shutil.copytree(pairs, tmp_path / "split" / "training")
    assert guess_kind(tmp_path / "split") == "image-pairs"
    assert guess_kind("x.JPEG") == "images"


def spoil(root: Path) -> list[str]:
    """Break a folder in many ways; the returned files are those that a check must list."""
    good = (root / "cat" / "b.jpg").read_bytes()
    (root / "cat" / "truncated.jpg").write_bytes(good[:-100])
    (root / "cat" / "text.jpg").write_text("hello")
    (root / "cat" / "empty.png").write_bytes(b"")
    picture(root / "dog" / "pixel.png", 1, (1, 1))
    Image.new("1", (10000, 10000)).save(root / "dog" / "bomb.png")
    frames = [Image.new("L", (9, 9), value) for value in (0, 255)]
    frames[0].save(root / "dog" / "frames.gif", save_all=True, append_images=frames[1:])
    (root / "dog" / "notes.txt").write_text("hello")
    (root / "dog" / "link.png").symlink_to("/dev/null")
    picture(root / "lost.png", 3)
    return [
        *("dog/link.png", "dog/notes.txt", "lost.png"),
        *("cat/empty.png", "cat/text.jpg", "cat/truncated.jpg", "dog/bomb.png", "dog/frames.gif", "dog/pixel.png"),
    ]


def test_every_broken_image_is_listed_and_can_be_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = spoil(root)
    report = check(root)
    assert sorted(os.path.relpath(finding.path, root) for finding in report.findings) == sorted(broken)
    assert report.notes[0] == "cat (5), dog (6)"
    assert not report.summary
    with pytest.raises(DataError):
        ImageFolder(root)

    out = tmp_path / "broken.json"
    assert main([str(root), "--write-broken", str(out)]) == 2
    output = capsys.readouterr()
    lines = output.out.splitlines()
    for name in broken:
        assert len([line for line in lines if line.startswith(f"{root / name}: ")]) == 1
    assert f"{out}: lists 9 files to leave out" in output.err
    assert "9 problems found" in output.err
    data = ImageFolder(root, leave_out=out)
    assert len([data[index] for index in range(len(data))]) == 5
    assert json.loads(out.read_text())["broken"]["cat/empty.png"] == ["file: is empty (0 bytes)"]


def test_every_wrong_folder_is_listed(root: Path) -> None:
    (root / "bird").mkdir()
    picture(root / "Dog" / "a.png", 9)
    (root / "README.md").write_text("about")
    report = check(root)
    assert [(Path(finding.path).name, finding.expected) for finding in report.findings] == [
        ("data", "'Dog' and 'dog' differ in case only"),
        ("bird", "holds no image"),
    ]
    assert report.notes[0] == f"{root / 'README.md'} is no image and was passed over"
    fixed = check(root, classes=["cat", "dog", "Dog", "bird", "fish"])
    assert [finding.expected for finding in fixed.findings] == ["class 'fish' has no folder", "holds no image"]


LINES = {
    "cat/truncated.jpg": "image: is truncated or damaged (",
    "cat/text.jpg": "file: is no image: expected JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, found text ('hello'); ",
    "cat/empty.png": "file: is empty (0 bytes); replace it, or leave it out",
    "dog/pixel.png": "size: 1x1 pixels hold no picture; replace it",
    "dog/bomb.png": "size: at most 89,478,485 pixels are decoded, its header announces more (a decompression bomb?)",
    "dog/frames.gif": "image: expected one picture, found several frames or pages; save one of them",
    "dog/notes.txt": "name: expected an image's ending (",
    "dog/link.png": "link: is a link that leaves the data set, to /dev/null; put the file itself there",
    "lost.png": "class: this image lies in no class; move it to its class's folder",
}


@pytest.mark.parametrize("name", LINES)
def test_command_says_one_line(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other in spoil(root):
        if other != name:
            (root / other).unlink()
    assert main([str(root)]) == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[0].startswith(f"{root / name}: {LINES[name]}")
    assert f"{root}: 1 problem found" in output.err


def test_modes_and_tiny_images_are_told(root: Path) -> None:
    Image.new("CMYK", (20, 30)).save(root / "cat" / "ink.jpg")
    Image.fromarray(np.ones((5, 40), np.uint16)).save(root / "cat" / "deep.png")
    report = check(root)
    assert report.ok
    assert report.notes[1] == "sizes: 16x12 (5), 40x5 (1), 20x30 (1)"
    assert report.notes[2] == "modes: RGB (5), I;16 (1), CMYK (1)"
    assert report.notes[3] == f"1 image has a side below 8 pixels: {root / 'cat' / 'deep.png'}"


def test_copies_are_told(tmp_path: Path) -> None:
    for seed, split in enumerate(["test", "train"]):
        classes(tmp_path / split, 10 * seed)
    train, test = tmp_path / "train", tmp_path / "test"
    shutil.copy(train / "cat" / "a.png", train / "cat" / "z.png")
    shutil.copy(train / "cat" / "b.jpg", train / "dog" / "z.jpg")
    shutil.copy(train / "dog" / "a.png", test / "dog" / "z.png")
    report = check(tmp_path)
    assert report.ok
    assert report.notes[-3:] == (
        f"1 content is in one class twice: {train}/cat/a.png = {train}/cat/z.png",
        f"1 content is in several classes: {train}/cat/b.jpg = {train}/dog/z.jpg",
        f"1 content is in several splits: {train}/dog/a.png = {test}/dog/z.png",
    )


def test_good_pairs(pairs: Path) -> None:
    report = check(pairs, num_classes=3)
    assert report.ok
    assert report.kind == "image-pairs"
    assert report.summary == "6 pairs"
    assert report.notes == ("sizes: 16x12 (6)", "modes: RGB (6)", "mask values: 0, 1, 2")


def test_every_broken_pair_is_listed_and_can_be_left_out(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "masks" / "a.png").unlink()
    (pairs / "images" / "b.jpg").write_bytes(b"")
    (pairs / "masks" / "b.png").write_bytes(b"")
    Image.new("L", (12, 16)).save(pairs / "masks" / "c.png")
    Image.new("L", (16, 12), 7).save(pairs / "masks" / "d.png")
    Image.new("RGB", (16, 12)).save(pairs / "masks" / "e.png")
    want = {
        "images/a.jpg": "has none of this name",
        "images/b.jpg": "is empty (0 bytes)",
        "masks/b.png": "is empty (0 bytes)",
        "masks/c.png": "expected 16x12 as in",
        "masks/d.png": "row 0, column 0: expected 0 to 2 or 255 (ignored), found 7",
        "masks/e.png": "expected one channel of class numbers, found RGB",
    }
    out = tmp_path / "broken.json"
    assert main([str(pairs), "--set", "num_classes=3", "--write-broken", str(out)]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note: ")]
    assert len(lines) == len(want)
    for line, (name, text) in zip(lines, want.items(), strict=True):
        assert line.startswith(f"{pairs / name}: ")
        assert text in line
    data = ImagePairs(pairs, num_classes=3, leave_out=out)
    assert [Path(data.paths[index][0]).name for index in range(len(data))] == ["f.jpg"]
    assert data[0][0].size == (16, 12)


def test_splits_of_pairs(pairs: Path, tmp_path: Path) -> None:
    inner = tmp_path / "ade"
    for split in ("training", "validation"):
        shutil.copytree(pairs / "images", inner / "images" / split)
        shutil.copytree(pairs / "masks", inner / "annotations" / split)
    report = check(inner)
    assert report.summary == "12 pairs in training (6), validation (6)"
    assert report.notes[-2].startswith("6 contents are in several splits: ")
    shutil.rmtree(inner / "annotations" / "validation")
    assert [finding.where for finding in check(inner).findings] == ["split 'validation'"]


def test_a_mask_folder_that_is_a_link(pairs: Path, tmp_path: Path) -> None:
    (pairs / "masks").rename(tmp_path / "elsewhere")
    (pairs / "masks").symlink_to(tmp_path / "elsewhere")
    assert [finding.where for finding in check(pairs, "image-pairs").findings] == ["link"]


def test_layout_of_pairs_is_a_finding(pairs: Path) -> None:
    shutil.rmtree(pairs / "masks")
    assert [finding.where for finding in check(pairs, "image-pairs").findings] == ["layout"]
    assert guess_kind(pairs) == "images"


def test_a_single_file_has_no_list(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder, found a file; check its folder"):
        write_broken(check(root / "dog" / "a.png"), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_list_overwrites_only_a_list(root: Path, tmp_path: Path) -> None:
    photo, out = root / "dog" / "a.png", tmp_path / "out.json"
    before = photo.read_bytes()
    for taken in (photo, tmp_path / "settings.json"):
        if taken != photo:
            taken.write_text("[1]", encoding="utf-8")
        with pytest.raises(DataError, match="another file stands there; give another name"):
            write_broken(check(root), taken)
        with pytest.raises(DataError, match="another file stands there"):
            main([str(root), "--write-broken", str(taken)])
    assert photo.read_bytes() == before
    for _ in range(2):
        assert write_broken(check(root), out) == 0


def test_names_that_are_no_text(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"\xff.png", b"two\nlines.png"):
        (root / "dog" / os.fsdecode(name)).write_bytes(b"")
    out = tmp_path / "broken.json"
    assert main([str(root), "--write-broken", str(out)]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if "0 bytes" in line]
    assert [line.split("/dog/")[1][:14] for line in lines] == ["two lines.png:", "\\udcff.png: fi"]
    assert len(ImageFolder(root, leave_out=out)) == 5


def test_whole_command(root: Path) -> None:
    (root / "dog" / "b.png").write_text("hello")
    command = [sys.executable, "-m", "mamba_recipes.cli", "check", str(root), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert [Path(finding["path"]).name for finding in json.loads(done.stdout)["findings"]] == ["b.png"]
    assert len(done.stderr.splitlines()) == 1
