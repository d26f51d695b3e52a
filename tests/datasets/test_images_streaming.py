"""Images streamed from chunks: whole, in a new order every epoch, and resumed exactly in the middle of one."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mamba_apps.training import make_trainer
from mamba_datasets import images
from mamba_datasets.errors import DataError

pytest.importorskip("litdata", reason="streaming needs litdata: pip install 'mamba-apps[scale]'")

COUNT = 30  # 10 batches of 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images whose values tell them apart."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(COUNT):
        path = folder / ("cat" if number < COUNT // 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (number,) * 3).save(path)
    return folder


@pytest.fixture(scope="module")
def chunks(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chunks") / "out"
    assert images.optimize_folder(root, out, chunk_bytes=600) == COUNT
    return out


def noisy(image: Image.Image) -> torch.Tensor:
    """Draw from all three generators, as augmentations do."""
    draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002, S311
    return torch.tensor([float(np.asarray(image).mean()), *draws])


def loader(chunks: Path, workers: int = 0) -> Any:
    data = images.StreamingImages(chunks, shuffle=True, seed=3, transform=noisy)
    return images.StreamingLoader(data, batch_size=3, num_workers=workers)


def plain(batch: list[torch.Tensor]) -> tuple[list[list[float]], list[int]]:
    return batch[0].tolist(), batch[1].tolist()


def test_chunks_hold_every_image_shuffled(root: Path, chunks: Path) -> None:
    data = images.StreamingImages(chunks)
    assert data.classes == ["cat", "dog"]
    assert len(data) == COUNT
    items = [data[index] for index in range(COUNT)]
    assert {(image.mode, image.size) for image, _ in items} == {("RGB", (6, 6))}
    values = [image.getpixel((0, 0))[0] for image, _ in items]
    assert sorted(values) == list(range(COUNT))
    assert [target for _, target in items] == [int(value >= COUNT // 2) for value in values]
    assert len({target for _, target in items[:8]}) == 2  # litdata draws a batch from few chunks
    assert len(list(chunks.glob("*.bin"))) > 3


def test_epochs_are_whole_and_differ(chunks: Path) -> None:
    streamed = loader(chunks)
    first, second = ([plain(batch) for batch in streamed] for _ in range(2))
    for epoch in (first, second):
        assert sorted(round(item[0]) for items, _ in epoch for item in items) == list(range(COUNT))
    assert [targets for _, targets in first] != [targets for _, targets in second]
    draws = [{item[0]: item[1:] for items, _ in epoch for item in items} for epoch in (first, second)]
    assert draws[0][5.0] != draws[1][5.0]


@pytest.mark.parametrize(
    ("workers", "stops"), [(0, range(1, 11)), pytest.param(2, (1, 4, 7, 10), marks=pytest.mark.slow)]
)
def test_resumed_epoch_equals_the_unbroken_one(workers: int, stops: range, chunks: Path) -> None:
    unbroken = loader(chunks, workers)
    epochs = [[plain(batch) for batch in unbroken] for _ in range(3)]
    for epoch in (0, 1):
        for stop in stops:
            broken = loader(chunks, workers)
            for _ in range(epoch):
                list(broken)
            iterator = iter(broken)
            for _ in range(stop):
                next(iterator)
            state = json.loads(json.dumps(broken.state_dict()))
            del iterator
            torch.manual_seed(stop)
            resumed = loader(chunks, workers)
            resumed.load_state_dict(state)
            if stop < len(epochs[0]):
                assert [plain(batch) for batch in resumed] == epochs[epoch][stop:]
            assert [plain(batch) for batch in resumed] == epochs[epoch + 1]


def test_transforms_leave_the_training_randomness_alone(chunks: Path) -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    images.StreamingImages(chunks, transform=noisy)[0]
    assert torch.equal(torch.rand(3), want)


class Task(pl.LightningModule):
    """Dropout draws from the training's own generator."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.stop_at = stop_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise ArithmeticError("stopped here")
        return nn.functional.cross_entropy(self.net(batch[0] / COUNT), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_run_stopped_in_mid_epoch_continues_exactly(chunks: Path, tmp_path: Path) -> None:
    def run(name: str, *, stop_at: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            run_dir=tmp_path / name,
            max_steps=24,
            accelerator="cpu",
            progress=False,
            resume=resume,
            save_every_steps=2,
            logger=False,
        )
        task = Task(stop_at)
        trainer.fit(task, loader(chunks))
        return task.state_dict()

    whole = run("whole")
    for stop in (6, 10, 17):
        with pytest.raises(ArithmeticError):
            run(f"broken-{stop}", stop_at=stop)
        resumed = run(f"broken-{stop}", resume=True)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), f"stopped in step {stop}"


def test_broken_image_stops_the_writing_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(root, folder)
    (folder / "dog" / "20.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/20\.png: file: is empty"):
        images.optimize_folder(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"broken": ["dog/20.png"]}))
    assert images.optimize_folder(folder, tmp_path / "out", leave_out=broken) == COUNT - 1
    with pytest.raises(DataError, match="out: folder: exists already"):
        images.optimize_folder(folder, tmp_path / "out")


@pytest.mark.parametrize("spoil", ["missing", "text", "version", "layout"])
def test_no_chunks_of_images(spoil: str, chunks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    shutil.copytree(chunks, folder)
    index = json.loads((folder / "index.json").read_text())
    if spoil == "missing":
        shutil.rmtree(folder)
    elif spoil == "version":
        index["images"]["version"] = 9
    elif spoil == "layout":
        index["config"]["data_format"][2] = "pickle"
    if spoil != "missing":
        (folder / "index.json").write_text("hello" if spoil == "text" else json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json: expected chunks of images.*; write it with "):
        images.StreamingImages(folder)


def test_from_an_address(chunks: Path, tmp_path: Path) -> None:
    data = images.StreamingImages(f"local:{chunks}", cache_dir=str(tmp_path), shuffle=True)
    assert data.classes == ["cat", "dog"]
    values = [image.getpixel((0, 0))[0] for image, _ in data]
    assert sorted(values) == list(range(COUNT))
    assert any(tmp_path.rglob("*.bin"))  # the chunks came here


def test_without_litdata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    monkeypatch.delitem(sys.modules, "mamba_datasets.images.streaming")
    with pytest.raises(DataError, match=r"litdata: import: .*; pip install 'mamba-apps\[scale\]'"):
        _ = images.StreamingImages
