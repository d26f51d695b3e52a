"""Data sets by timm's names: training stops at an image that cannot be read, where timm would take the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mamba_apps.errors import UserError
from mamba_apps.vision.classification.sources import TimmImages
from mamba_datasets.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(["cat/a", "cat/b", "dog/a", "dog/b"]):
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (6, 6), (number, 0, 0, 255)).save(path)
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "torch/image_folder"])
def test_items(name: str, root: Path) -> None:
    data = TimmImages(name, str(root), "train")
    assert data.classes == ["cat", "dog"]
    items = [data[index] for index in range(len(data))]
    assert [(image.mode, image.getpixel((0, 0))[0], label) for image, label in items] == [
        ("RGB", 0, 0),
        ("RGB", 1, 0),
        ("RGB", 2, 1),
        ("RGB", 3, 1),
    ]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "truncated"])
@pytest.mark.parametrize("name", ["folder", "torch/image_folder"])
def test_broken_image_stops_with_its_path(name: str, content: bytes | str, root: Path) -> None:
    broken = root / "train" / "dog" / "a.png"
    broken.write_bytes(content if isinstance(content, bytes) else broken.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        list(DataLoader(TimmImages(name, str(root), "train"), batch_size=None))  # type: ignore[arg-type]
    assert caught.value.path == str(broken)
    assert "\n" not in str(caught.value)


def test_names_that_cannot_be_opened(root: Path) -> None:
    with pytest.raises(UserError, match="timm cannot open the data set 'torch/none'"):
        TimmImages("torch/none", str(root), "train")
