"""Volumes from file to mask: geometry to the voxel, bad input by name, runs that resume exactly, bounded memory."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from mamba_apps.errors import UserError
from mamba_apps.medical.segmentation import Segmenter, VolumeData, VolumeSegmentationTask
from mamba_apps.medical.segmentation import predictor as predictor_module
from mamba_apps.medical.segmentation.predictor import Predictor
from mamba_apps.medical.segmentation.results import Results
from mamba_apps.training import make_trainer, save_model
from mamba_datasets.errors import DataError
from mamba_datasets.volumes import NetworkPlan, Plan, Volume, read_label, read_volume, write_mask
from mamba_datasets.volumes.plan import Normalisation
from mamba_datasets.volumes.synthetic import write_synthetic

TINY = NetworkPlan((8, 8, 8), (4, 8), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
FLAT = NetworkPlan((8, 12), (4, 8), ((3, 3),) * 2, ((1, 1), (2, 2)), (1, 1), (1,))


def plan_of(network: NetworkPlan = TINY, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "dataset": "toy",
        "configuration": "3d_fullres",
        "network": network,
        "batch_size": 2,
        "spacing": (1.0,) * network.dim,
        "axes": (0, 1, 2),
        "orientation": "RAS",
        "normalisation": (Normalisation("none"),),
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "channel_names": {0: "MR"},
    }
    return Plan(**{**fields, **changes})


class Bright(nn.Module):
    """A network that has nothing to learn: the label of a voxel is its brightness, 0, 1 or 2, to the nearest."""

    def forward(self, x: Tensor) -> Tensor:
        return -10 * torch.cat([(x - value).abs() for value in (0.0, 1.0, 2.0)], dim=1)


def scene(shape: Sequence[int] = (20, 24, 28)) -> np.ndarray:
    """Return labels (x, y, z) without symmetry."""
    label = np.zeros(shape, np.float32)
    label[3:15, 4:20, 5:24] = 1
    label[4:9, 6:16, 8:20] = 2
    return label


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.Nifti1Image(array.astype(np.float32), affine).to_filename(path)
    return path


def world_points(path: Path, value: int) -> np.ndarray:
    """Return the world coordinates of the voxels with a value."""
    image: Any = nib.load(path)
    places = np.argwhere(np.asarray(image.dataobj).round() == value)
    return places @ image.affine[:3, :3].T + image.affine[:3, 3]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIR", "SRP", "PIL"])
def test_any_orientation_comes_back_on_its_own_grid(codes: str, tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-12.5, 7, 30)
    upright = nib.Nifti1Image(scene(), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    path = tmp_path / "image.nii.gz"
    upright.as_reoriented(turn).to_filename(path)
    segmenter = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright")
    out = segmenter.write(path, tmp_path / "mask.nii.gz")
    found: Any = nib.load(out)
    given: Any = nib.load(path)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(given.dataobj))  # to the voxel
    assert np.array_equal(found.affine, given.affine)
    assert found.get_data_dtype() == np.uint8
    written = read_label(out).array[0]
    assert np.array_equal(written, segmenter.predict(path))  # read again, bit-equal
    for value in (1, 2):
        centre = world_points(out, value).mean(0)
        np.testing.assert_allclose(centre, world_points(write(tmp_path / "u.nii", scene(), affine), value).mean(0))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.5), (0.6, 1.4, 1.0), (2.0, 2.0, 2.0)])
def test_an_anisotropic_volume_is_resampled_and_back(spacing: tuple[float, ...], tmp_path: Path) -> None:
    fine = scene((48, 48, 48)).repeat(1, 0)
    fine[10:36, 12:40, 9:40] = 1
    fine[14:26, 18:30, 16:32] = 2
    places = [np.clip(np.arange(0, 48, step).round().astype(int), 0, 47) for step in spacing]
    coarse = fine[np.ix_(*places)]
    affine = np.diag([-spacing[0], spacing[1], -spacing[2], 1.0])
    path = write(tmp_path / "image.nii.gz", coarse, affine)
    segmenter = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright")
    mask = segmenter.predict(path)
    out = segmenter.write(path, tmp_path / "mask.nii.gz")
    truth = coarse.T.astype(np.uint8)
    assert mask.shape == truth.shape
    for value in (1, 2):
        both = ((mask == value) & (truth == value)).sum()
        assert 2 * both / ((mask == value).sum() + (truth == value).sum()) > 0.9
        shift = world_points(out, value).mean(0) - world_points(path, value).mean(0)
        assert np.abs(shift / np.array(spacing)).max() < 0.5


def test_slices_and_flat_pictures(tmp_path: Path) -> None:
    by_slices = plan_of(FLAT, configuration="2d", axes=(1, 0, 2))
    path = write(tmp_path / "image.nii.gz", scene(), np.diag([-1.0, 1.0, 1.0, 1.0]))
    mask = Segmenter(Predictor([Bright()], by_slices, device="cpu", batch_size=5), "bright").predict(path)
    assert np.array_equal(mask, scene().T)
    from PIL import Image

    picture = scene()[6].astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    flat = plan_of(FLAT, configuration="2d", axes=(0, 1), orientation=None, file_ending=".png")
    segmenter = Segmenter(Predictor([Bright()], flat, device="cpu"), "bright")
    out = segmenter.write(tmp_path / "picture.png", tmp_path / "mask.png")
    with Image.open(out) as found:
        assert np.array_equal(np.asarray(found), picture)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 20, 20), (7, 30, 8)])
def test_an_image_smaller_than_the_patch(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 3, shape)
    path = write(tmp_path / "image.nii.gz", image, np.eye(4))
    mask = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright").predict(path)
    assert np.array_equal(mask, image.T)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 4)), [np.zeros((4, 4, 4))], []])
def test_arrays_are_no_images_as_they_measure_nothing(image: Any) -> None:
    with pytest.raises(UserError, match=r"no file.*predict\(\"ct\.nii\.gz\"\)"):
        Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright").predict(image)


def test_probabilities_and_ensembles(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz", scene(), np.diag([1.2, 1.0, 0.9, 1.0]))
    one = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright")
    mask, chances = one.predict_with_probabilities(path)
    assert np.array_equal(mask, one.predict(path))
    assert chances.shape == (3, *mask.shape)
    np.testing.assert_allclose(chances.sum(0), 1, atol=5e-3)
    assert (chances.argmax(0) == mask).mean() > 0.99

    class Blind(Bright):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0)

    # the mean of the scores decides: a network that is sure of nothing changes nothing, one that is sure does
    class Unsure(Bright):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0

    together = Segmenter(Predictor([Bright(), Unsure()], plan_of(), device="cpu"), "both")
    assert np.array_equal(together.predict(path), mask)
    drowned = Segmenter(Predictor([Bright(), Blind(), Blind(), Blind()], plan_of(), device="cpu"), "all")
    assert not drowned.predict(path).any()


def test_scores_that_are_many_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "image.nii.gz", scene(), np.diag([1.2, 1.0, 0.9, 1.0]))
    segmenter = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright")
    expected = segmenter.predict_with_probabilities(path)
    monkeypatch.setattr(predictor_module, "_IN_MEMORY", 1000)
    found = segmenter.predict_with_probabilities(path)
    assert np.array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot hold the scores of a volume in .*No space left"):
        segmenter.predict(path)


def test_a_full_disk_leaves_no_half_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "image.nii.gz", scene(), np.eye(4))
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError) as caught:
        Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright").write(path, out)
    assert "No space left" in str(caught.value)
    assert out.read_bytes() == b"before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["image.nii.gz", "mask.nii.gz"]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((8, 9, 10), np.nan), "voxels: 720 are NaN or infinite"),
        (np.zeros((8, 9, 10, 2)), "axes"),
    ],
)
def test_volumes_that_cannot_be_trusted(array: np.ndarray, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz", array, np.eye(4))
    with pytest.raises(DataError, match=says):
        Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright").predict(path)


def test_a_wrong_channel_count(tmp_path: Path) -> None:
    for channel in (0, 1):
        write(tmp_path / f"case_000{channel}.nii.gz", scene(), np.eye(4))
    write(tmp_path / "other.nii.gz", scene(), np.eye(4))
    one = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright")
    with pytest.raises(DataError, match=r"channels: expected 1 \(MR\), found 2"):
        one.predict([tmp_path / "case_0000.nii.gz", tmp_path / "case_0001.nii.gz"])
    two_plan = plan_of(channel_names={0: "T1", 1: "T2"}, normalisation=(Normalisation("none"),) * 2)
    two = Segmenter(Predictor([Bright()], two_plan, device="cpu"), "bright")
    assert two.read(tmp_path / "case_0000.nii.gz").channels == 2  # the siblings are found
    with pytest.raises(DataError, match=r"channels: expected 2 \(T1, T2\), found 1"):
        two.predict(tmp_path / "other.nii.gz")
    write(tmp_path / "case_0002.nii.gz", scene(), np.eye(4))
    with pytest.raises(UserError, match="the model reads 2 channels, case has _0000, _0001, _0002"):
        two.predict(tmp_path / "case_0000.nii.gz")
    with pytest.raises(UserError, match="there is no such file"):
        two.predict(tmp_path / "none.nii.gz")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("ellipsoids"), 6, (20, 18, 16))


@pytest.fixture(scope="module")
def plan_file(dataset: Path) -> Path:
    made = VolumeData(str(dataset)).plan
    path = dataset / "tiny.json"
    dataclasses.replace(made, network=TINY, batch_size=2).to_json(path)
    return path


def data_of(dataset: Path, plan_file: Path, **options: Any) -> VolumeData:
    return VolumeData(str(dataset), plan=str(plan_file), **{"steps": 4, "folds": 3, "workers": 0, **options})


def test_folds_are_dealt_by_name(dataset: Path, plan_file: Path) -> None:
    data = data_of(dataset, plan_file, fold=1)
    names = sorted(case.name for case in data.dataset.cases)
    assert data.held_out == names[1::3]
    assert sorted(data.split[0] + data.held_out) == names
    everything = data_of(dataset, plan_file, fold=None)
    assert everything.split == (names, [])
    assert len(everything.val_dataloader()) == 0
    with pytest.raises(UserError, match="none is held out"):
        everything.test_dataloader()
    assert "4 cases to train on, 2 held out, 2 labels, patch 8 x 8 x 8, batch 2" in data.describe()


def test_folds_of_a_file_are_taken(dataset: Path, plan_file: Path, tmp_path: Path) -> None:
    names = sorted(case.name for case in data_of(dataset, plan_file).dataset.cases)
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": names[2:], "val": names[:2]}, {"train": names[:1], "val": names[1:2]}]))
    assert data_of(dataset, plan_file, splits=str(path)).split == (names[2:], names[:2])
    assert data_of(dataset, plan_file, splits=str(path), fold=1).split == (names[:1], names[1:2])
    with pytest.raises(UserError, match=r"fold is 2, .*splits_final.json has 2; give 0 to 1"):
        _ = data_of(dataset, plan_file, splits=str(path), fold=2).split


def test_batches_follow_the_seed_and_not_the_workers(dataset: Path, plan_file: Path) -> None:
    found = []
    for workers in (0, 1):
        torch.manual_seed(5)
        loader = data_of(dataset, plan_file, workers=workers).train_dataloader()
        found.append(list(loader))
    assert len(found[0]) == 4
    for (images, labels), (others, other_labels) in zip(*found, strict=True):
        assert images.shape == (2, 1, 8, 8, 8)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_a_part_of_each_batch_is_centred_on_a_label(dataset: Path, plan_file: Path) -> None:
    data = data_of(dataset, plan_file, batch_size=3, steps=8, augment=False, mirror=False)
    for _, labels in data.train_dataloader():
        assert labels[2].any()
    everywhere = data_of(dataset, plan_file, batch_size=4, steps=4, foreground=1.0, augment=False)
    for _, labels in everywhere.train_dataloader():
        assert labels.flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fold": 3}, "fold is 3 of 3"),
        ({"folds": 1}, "fold is 0 of 1"),
        ({"dim": 4}, "dim is 4"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"foreground": 1.5}, "foreground is 1.5"),
        ({"memory_gib": 0.0}, "memory_gib is 0.0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], says: str, dataset: Path, plan_file: Path) -> None:
    with pytest.raises(UserError, match=says):
        data_of(dataset, plan_file, **options)


def test_a_plan_of_other_data_is_refused(dataset: Path, tmp_path: Path) -> None:
    plan_of().to_json(tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"plan.json was made for the channels .*MR.*, the data has .*contrast 0"):
        _ = VolumeData(str(dataset), plan=str(tmp_path / "plan.json")).plan


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"optimiser": "sdg"}, "did you mean 'sgd'"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"dice": -1.0}, "dice is -1.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_task_settings_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        VolumeSegmentationTask("plain_unet", **options)


def train(folder: Path, data: VolumeData, *, stop_at: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    """Train for six steps of two epochs, and return the weights; perhaps interrupted after a step."""

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == stop_at:
                raise KeyboardInterrupt

    trainer = make_trainer(
        run_dir=folder, max_steps=6, accelerator="cpu", progress=False, resume=resume, save_every_steps=1, seed=3,
        callbacks=[Stop()] if stop_at else [],
    )  # fmt: skip
    task = VolumeSegmentationTask("plain_unet", scores=None)
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(task, datamodule=data)
    else:
        trainer.fit(task, datamodule=data)
    return {name: value.clone() for name, value in task.state_dict().items()}


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_resumed_run_is_the_unbroken_one(stop_at: int, dataset: Path, plan_file: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", data_of(dataset, plan_file, steps=3))
    train(tmp_path / "broken", data_of(dataset, plan_file, steps=3), stop_at=stop_at)
    resumed = train(tmp_path / "broken", data_of(dataset, plan_file, steps=3), resume=True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_pictures_in_colours_are_learned_from(tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "pictures"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        label = np.zeros((20, 26), np.uint8)
        label[4:14, 3 + 5 * number : 12 + 5 * number] = 1
        colours = (100 + 100 * label[..., None] * (1, 0, 1) + generator.integers(0, 30, (20, 26, 3))).astype(np.uint8)
        Image.fromarray(colours).save(root / f"imagesTr/cell{number}_0000.png")
        Image.fromarray(label).save(root / f"labelsTr/cell{number}.png")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "cell": 1},
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    made = VolumeData(str(root), folds=3).plan
    assert made.network.dim == 2
    dataclasses.replace(made, network=FLAT, batch_size=4).to_json(root / "plan.json")
    data = data_of(root, root / "plan.json", steps=20)
    trainer = make_trainer(run_dir=tmp_path / "run", max_steps=60, accelerator="cpu", progress=False)
    task = VolumeSegmentationTask("plain_unet", optimiser="adamw", lr=1e-2)
    trainer.fit(task, datamodule=data)
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    assert found["test/dice_cell"] > 0.6
    assert (tmp_path / "run/scores/median.png").is_file()
    segmenter = Segmenter.load(save_model(tmp_path / "model", task, task.model_card(data, {})), device="cpu")
    assert segmenter.predict(root / "imagesTr/cell0_0000.png").shape == (20, 26)


def saved(folder: Path, data: VolumeData, network: str = "umamba_bot") -> Path:
    task = VolumeSegmentationTask(network)
    task.prepare_for(data)
    return save_model(folder, task, task.model_card(data, {"val/dice": 0.5}))


def test_a_saved_model_needs_nothing_else(dataset: Path, plan_file: Path, tmp_path: Path) -> None:
    data = data_of(dataset, plan_file)
    folder = saved(tmp_path / "model", data)
    segmenter = Segmenter.load(folder, device="cpu")
    assert segmenter.labels == {"background": 0, "organ": 1, "lesion": 2}
    assert segmenter.plan == data.plan
    image, _ = data.held_out_files(data.held_out[0])
    assert segmenter.predict(image).shape == image.shape
    # a folder of it is a plan too
    assert VolumeData(str(dataset), plan=str(folder)).plan == data.plan


def test_models_of_another_plan_are_refused(dataset: Path, plan_file: Path, tmp_path: Path) -> None:
    data = data_of(dataset, plan_file)
    folder = saved(tmp_path / "one", data)
    other_plan = tmp_path / "other.json"
    dataclasses.replace(data.plan, spacing=(1.5, 1.0, 1.0)).to_json(other_plan)
    other = data_of(dataset, other_plan)
    renamed = tmp_path / "renamed.json"
    dataclasses.replace(data.plan, dataset="another name", batch_size=7).to_json(renamed)
    twin = saved(tmp_path / "twin", data_of(dataset, renamed))  # what differs does not matter to a network
    assert len(Segmenter.load([folder, twin], device="cpu").predictor.networks) == 2
    with pytest.raises(UserError, match=r"two was trained with another plan than .*one"):
        Segmenter.load([folder, saved(tmp_path / "two", other)], device="cpu")
    task, same = VolumeSegmentationTask("umamba_bot"), VolumeSegmentationTask("umamba_bot")
    task.prepare_for(other)
    same.prepare_for(data)
    with pytest.raises(UserError, match="trained with another plan"):
        task.load_state_dict(same.state_dict())
    with pytest.raises(UserError, match="made for another plan"):
        task.prepare_for(data)
    with pytest.raises(UserError, match="no model is given"):
        Segmenter.load([])


def test_a_label_to_be_ignored_teaches_nothing(dataset: Path, plan_file: Path) -> None:
    data = data_of(dataset, plan_file)
    task = VolumeSegmentationTask("plain_unet", deep_supervision=False)
    task.prepare_for(data)
    task.plan = dataclasses.replace(data.plan, labels={**data.plan.labels, "ignore": 3})
    images, labels = torch.randn(2, 1, 8, 8, 8), torch.full((2, 8, 8, 8), 3, dtype=torch.int16)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = task.training_step((images, labels), 0)
    labels[:, 0] = 1
    assert loss < task.training_step((images, labels), 0)


def test_the_voxels_of_a_mask_are_those_of_its_image(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz", scene(), np.eye(4))
    image = read_volume(path)
    assert isinstance(image, Volume)
    mask = Segmenter(Predictor([Bright()], plan_of(), device="cpu"), "bright").predict(image)
    write_mask(tmp_path / "mask.nii.gz", mask, image)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj), scene())


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["umamba_enc", "umamba_bot", "plain_unet"])
def test_bfloat16_on_a_gpu_stays_finite(network: str, dataset: Path, plan_file: Path, tmp_path: Path) -> None:
    data = data_of(dataset, plan_file, steps=20, workers=2)
    trainer = make_trainer(
        run_dir=tmp_path / "run", max_steps=40, accelerator="gpu", precision="bf16-mixed", progress=False,
        gradient_clip_val=12.0,
    )  # fmt: skip
    task = VolumeSegmentationTask(network, scores=None)
    trainer.fit(task, datamodule=data)
    assert all(value.isfinite().all() for value in task.state_dict().values())
    assert trainer.callback_metrics["val/dice"] > 0
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    folder = save_model(tmp_path / "model", task, task.model_card(data, {}))
    case = data.held_out[0]
    image, _ = data.held_out_files(case)
    on_gpu, on_cpu = (Segmenter.load(folder, device=device).predict(image) for device in ("cuda", "cpu"))
    assert (on_gpu == on_cpu).mean() > 0.98
    assert 0 <= found["test/dice"] <= 1


def test_processes_hand_their_scores_to_each_other(tmp_path: Path) -> None:
    results = Results(plan_of(), tolerance=1.0)
    path = write(tmp_path / "label.nii", scene(), np.eye(4))
    truth = read_label(path)
    results.add("one", truth.array[0], truth)
    before = results.means()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        results.gather()
    finally:
        distributed.destroy_process_group()
    assert list(results.scores) == ["one"]
    assert results.means() == before
    assert before["dice"] == 1
