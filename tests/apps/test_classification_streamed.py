"""Classification from chunks: the images of their folder, and a run that goes on in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("litdata")

from mamba_apps.errors import UserError
from mamba_apps.training import make_trainer
from mamba_apps.vision.classification import ClassificationTask, ImageData, StreamedImageData
from mamba_datasets.images import optimize_folder


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    for part in ("train", "val"):
        for name, red in (("dark", 30), ("light", 200)):
            (root / "files" / part / name).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (8, 8), (red, 10 * number, 0)).save(root / "files" / part / name / f"{number}.png")
        optimize_folder(root / "files", root / "chunks" / part, split=part)
    return root


def data(root: Path, **options: object) -> StreamedImageData:
    return StreamedImageData(str(root / "chunks"), size=8, batch_size=4, workers=0, **options)  # type: ignore[arg-type]


def test_chunks_hold_what_the_folder_holds(chunks: Path) -> None:
    streamed, folder = data(chunks, crop_pct=1.0), ImageData(str(chunks / "files"), size=8, crop_pct=1.0, workers=0)
    assert list(streamed.classes) == list(folder.classes) == ["dark", "light"]
    assert streamed.describe().endswith("20 training images, 2 classes, 8 px")

    def pairs(one: ImageData) -> set[tuple[float, int]]:
        found = [
            (x.float().mean().item(), int(y)) for xs, ys in one.val_dataloader() for x, y in zip(xs, ys, strict=True)
        ]
        assert len(found) == 20
        return set(found)

    assert pairs(streamed) == pairs(folder)


class StopHereError(Exception):
    """Raised inside a training step, as any bug would be."""


class Stopping(ClassificationTask):
    stop_at = -1

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise StopHereError
        return super().training_step(batch, batch_idx)


def test_a_run_goes_on_in_the_middle_of_an_epoch(chunks: Path, tmp_path: Path) -> None:
    def train(folder: Path, *, stop_at: int = -1, resume: bool = False) -> dict[str, torch.Tensor]:
        options = {"accelerator": "cpu", "progress": False, "save_every_steps": 1}
        trainer = make_trainer(run_dir=folder, max_steps=8, resume=resume, **options)
        module = Stopping("mambavision_nano_8", warmup=0.0)
        module.stop_at = stop_at
        trainer.fit(module, datamodule=data(chunks, color_jitter=0.4))
        return module.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(StopHereError):
        train(tmp_path / "broken", stop_at=3)
    resumed = train(tmp_path / "broken", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val": 0.1}, "nothing is held back"),
        ({"leave_out": "list.json"}, "neither dataset nor leave_out"),
        ({"repeats": 3}, "has each image once"),
    ],
)
def test_what_a_stream_has_not(options: dict, says: str, chunks: Path) -> None:
    with pytest.raises(UserError, match=says):
        data(chunks, **options).val_dataloader()
