"""Labelled images: parts held back, batches and augmentation, what is refused, and a sample without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mamba_apps.errors import UserError
from mamba_apps.vision.classification import ImageData, SmallImageData
from mamba_apps.vision.classification.augment import BatchAugment
from mamba_apps.vision.classification.preprocessing import Preprocessing
from mamba_apps.vision.classification.sources import TimmImages, hold_back
from mamba_datasets.errors import DataError

COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 40), "red": (220, 20, 30)}


def write_images(root: Path, count: int = 6, size: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(colour) + generator.normal(0, 12, (size, size + number, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        write_images(tmp_path / "images" / part)
    return tmp_path / "images"


def test_a_folder_with_parts(folder: Path) -> None:
    data = ImageData(str(folder), size=8, batch_size=4, eval_batch_size=5, workers=0)
    assert list(data.classes) == sorted(COLOURS)
    assert (len(data.train), len(data.val)) == (18, 18)
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [4] * 4
    x_BCHW, labels_B = next(iter(data.val_dataloader()))
    assert x_BCHW.shape == (5, 3, 8, 8)
    assert x_BCHW.dtype == torch.uint8
    assert labels_B.tolist() == [0] * 5
    normal, _ = data.on_after_batch_transfer((x_BCHW, labels_B), 0)
    assert normal.dtype == torch.float32
    assert normal[0, 2].mean() > normal[0, 0].mean()
    assert data.describe() == "images: 18 training images, 3 classes, 8 px"
    assert data.test_dataloader() == []


def test_repeated_images_are_augmented_anew(folder: Path) -> None:
    torch.manual_seed(0)
    data = ImageData(str(folder), size=8, batch_size=6, repeats=3, workers=0, scale=(0.3, 1.0))
    x_BCHW, labels_B = next(iter(data.train_dataloader()))
    assert labels_B.view(2, 3).unique(dim=1).shape == (2, 1)
    assert len(torch.unique(x_BCHW, dim=0)) == 6
    with pytest.raises(UserError, match="repeats is 0"):
        ImageData(str(folder), repeats=0)


@pytest.mark.parametrize("kind", [ImageData, SmallImageData])
def test_predicted_images_are_named(kind: type[ImageData], folder: Path) -> None:
    options: dict[str, Any] = {"size": 8, "eval_batch_size": 5, **({"workers": 0} if kind is ImageData else {})}
    whole = kind(str(folder), val=None, test="val", **options)
    held = kind(str(folder), val=0.3, test=0.3, **options)
    for data, part in ((whole, "val"), (held, "train")):
        names = data.predicted_names()
        labels = [int(label) for _, labels_B in data.predict_dataloader() for label in labels_B]
        assert [Path(name).parent.name for name in names] == [data.classes[label] for label in labels]
        assert {Path(name).parent.parent for name in names} == {folder / part}
    assert kind(str(folder)).predicted_names() == []
    assert kind("digits", train=None, val=None, test=0.2, size=8).predicted_names() == []


def test_parts_that_are_not_named_are_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds parts, no classes: train, val; name them: --data\.train, --data\.val"):
        _ = ImageData(str(folder), train=None, val=0.2).classes


def test_parts_are_held_back_once_and_for_all(tmp_path: Path) -> None:
    root = str(write_images(tmp_path / "images"))
    seen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = SmallImageData(root, train=None, val=0.25, test=0.25, size=8, batch_size=4)
        parts = [data.train, data.val, data.test]
        assert [len(part) for part in parts] == [10, 4, 4]
        everything = torch.cat([part.images_NCHW for part in parts])
        assert len(torch.unique(everything, dim=0)) == 18
        seen.append(everything)
    assert torch.equal(*seen)


def test_small_and_large_see_the_same_images(folder: Path) -> None:
    large = ImageData(str(folder), size=8, crop_pct=1.0, workers=0)
    small = SmallImageData(str(folder), size=8)
    for index in (0, 9, 17):
        one, other = large.val[index], small.val[index]
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


def test_batches_repeat_with_the_seed() -> None:
    def batches(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        data = SmallImageData("digits", train=None, val=None, size=8, batch_size=512)
        return torch.cat([labels for _, labels in data.train_dataloader()])

    assert torch.equal(batches(3), batches(3))
    assert not torch.equal(batches(3), batches(4))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"root": None}, "name their folder"),
        ({"root": "digits"}, "has no part 'train'"),
        ({"dataset": "torch/no_such_set", "root": "."}, "timm cannot open the data set 'torch/no_such_set'"),
    ],
)
def test_sources_that_are_refused(options: dict, says: str) -> None:
    with pytest.raises((UserError, DataError), match=says):
        _ = SmallImageData(**options).train


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"val": 1.5}, "val is 1.5"),
        ({"val": 0.5, "test": 0.5}, "leave something to learn"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"batch_size": 0}, "batch_size"),
        ({"erase": 2.0}, "erase"),
        ({"shift": -1}, "shift"),
        ({"distort": 1.5}, "distort"),
        ({"distorted": -0.5}, "distorted"),
        ({"cutout": -1}, "cutout"),
        ({"interpolation": "lanczos9"}, "interpolation"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
    ],
)
def test_settings_out_of_range(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SmallImageData("digits", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hflip": 7.0}, "hflip is 7"),
        ({"scale": (0.5, 0.2)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"workers": -1}, "workers is -1"),
        ({"color_jitter": -0.1}, "color_jitter is"),
        ({"auto_augment": "random"}, "auto_augment is 'random', no policy"),
        ({"auto_augment": "rand-m9-mstd0.5-x1"}, "no policy of timm's"),
    ],
)
def test_augmentations_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ImageData("digits", train=None, val=0.1, **options)


@pytest.mark.parametrize("kind", [ImageData, SmallImageData])
def test_a_broken_image_stops_with_its_path(kind: type, folder: Path) -> None:
    broken = folder / "train" / "green" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    # torch waits seconds for workers in which an image failed, so here are none
    options = {} if kind is SmallImageData else {"workers": 0}
    data = kind(str(folder), size=8, **options)
    with pytest.raises(DataError, match=r"3\.png"):
        list(data.train_dataloader())


def test_a_broken_image_of_timm_s_reader_is_not_skipped(folder: Path) -> None:
    """A folder read by timm's own reader: its data set would take the next image."""
    images = TimmImages("", str(folder), "train")
    assert list(images.classes) == sorted(COLOURS)
    assert images[0][0].mode == "RGB"
    broken = folder / "train" / "blue" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"0\.png"):
        images[0]


def test_hold_back_keeps_everything() -> None:
    kept, held = hold_back(10, 0.3)
    assert sorted(kept + held) == list(range(10))
    assert len(held) == 3
    assert hold_back(10, 0.3) == (kept, held)
    with pytest.raises(UserError, match="leaves none"):
        hold_back(2, 0.9)


def test_augmentation_draws_for_each_image() -> None:
    x_BCHW = torch.randint(0, 256, (64, 3, 9, 7)).float()
    assert torch.equal(BatchAugment()(x_BCHW), x_BCHW)
    flipped = BatchAugment(hflip=1.0)(x_BCHW)
    torch.testing.assert_close(flipped, x_BCHW.flip(-1), atol=0.02, rtol=0)
    either = BatchAugment(hflip=0.5)(x_BCHW)
    kept = [torch.allclose(a, b, atol=0.02) for a, b in zip(either, x_BCHW, strict=True)]
    assert 10 < sum(kept) < 54
    distorted = BatchAugment(shift=2, hflip=0.5, distort=1.0)(x_BCHW)
    assert distorted.min() >= 0
    assert distorted.max() <= 255
    assert len(torch.unique(distorted, dim=0)) == 64


def test_what_enters_is_black_or_a_mirror_image() -> None:
    x_BCHW = torch.arange(1.0, 7.0).expand(64, 3, 6, 6)
    for mirror, first in ((False, 0.0), (True, 2.0)):
        torch.manual_seed(0)
        y_BCHW = BatchAugment(shift=2, mirror=mirror)(x_BCHW)
        # moved to the right by two: (2, 1,) 1, 2, 3, 4
        rows = {tuple(row.round().int().tolist()) for row in y_BCHW[:, 0, 2]}
        assert (int(first), int(first / 2), 1, 2, 3, 4) in rows
        assert (y_BCHW.round() == 0).any() != mirror


def test_some_images_stay_as_they_are() -> None:
    torch.manual_seed(0)
    x_BCHW = 255 * torch.rand(64, 3, 8, 8)
    kept = (BatchAugment(distort=0.5, distorted=0.5)(x_BCHW) - x_BCHW).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert 5 <= kept.sum() <= 30
    unchanged = BatchAugment(distort=0.5, distorted=0.0)(x_BCHW)
    torch.testing.assert_close(unchanged, x_BCHW, rtol=0, atol=1e-3)


def test_a_square_is_blanked_with_the_mean_colour() -> None:
    torch.manual_seed(0)
    x_BCHW = 255 * torch.rand(512, 3, 8, 8)
    y_BCHW = BatchAugment(cutout=3)(x_BCHW)
    blank_BHW = (y_BCHW == x_BCHW.mean(dim=(2, 3), keepdim=True)).all(dim=1)
    assert torch.equal(torch.where(blank_BHW[:, None], y_BCHW, x_BCHW), y_BCHW)
    sizes = {(int(square.any(dim=1).sum()), int(square.any(dim=0).sum())) for square in blank_BHW}
    # a square whose centre is in a corner reaches over both edges
    assert sizes == {(height, width) for height in (2, 3) for width in (2, 3)}
    assert blank_BHW.any(dim=0).all()


def test_shifts_are_whole_pixels_and_bring_black() -> None:
    x_BCHW = torch.randint(1, 256, (200, 1, 6, 6)).float()
    shifted = BatchAugment(shift=1)(x_BCHW)
    padded = torch.nn.functional.pad(x_BCHW, (1, 1, 1, 1))
    moves = [(down, right) for down in range(3) for right in range(3)]
    found = set()
    for one, whole in zip(shifted, padded, strict=True):
        fits = [m for m in moves if torch.allclose(one, whole[:, m[0] : m[0] + 6, m[1] : m[1] + 6], atol=0.05)]
        assert len(fits) == 1
        found.update(fits)
    assert found == set(moves)


def test_preprocessing_is_the_validation_s() -> None:
    preprocessing = Preprocessing(size=4, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    image = Image.new("RGB", (8, 8), (255, 0, 255))
    x_CHW = preprocessing.transform()(image)
    assert x_CHW.shape == (3, 4, 4)
    assert preprocessing.normalise(x_CHW[None].float())[0, :, 0, 0].tolist() == pytest.approx([2.0, -1.0, 0.5])
