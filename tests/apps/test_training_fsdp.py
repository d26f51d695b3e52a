"""Sharded training in one process: what is gathered at a time, what is saved, what is left, what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import mamba_apps.vision  # noqa: F401  registers the models
from mamba_apps.errors import UserError
from mamba_apps.training import make_trainer
from mamba_apps.training.sharding import Shards, shard_state, whole_state
from mamba_apps.vision.classification import ClassificationTask, SmallImageData

MODEL, SMALL = "vim_nano_patch2_8", {"depth": 2, "embed_dim": 16}


@pytest.fixture(autouse=True)
def _reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_kernels.backend._from_environment", "reference")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Leave no process group and none of its environment behind."""
    before = dict(os.environ)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def mesh(group: None, tmp_path: Path) -> DeviceMesh:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def sharded_layers(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (MODEL, ["layers.0", "layers.1", "layers.2", "layers.3"]),
        ("vmamba_nano_8", [f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)]),
        ("vit_tiny_patch16_224", [f"blocks.{block}" for block in range(12)]),
    ],
)
def test_repeated_layers_are_gathered_one_by_one(name: str, layers: list[str], mesh: DeviceMesh) -> None:
    model = timm.create_model(name)
    Shards(model, mesh)
    assert sharded_layers(model) == ["", *layers]
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_a_step_with_shards_is_one_without_and_undone_is_undone(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    plain, sharded = timm.create_model(MODEL, **SMALL), timm.create_model(MODEL, **SMALL)
    sharded.load_state_dict(plain.state_dict())
    kinds = [type(module) for module in sharded.modules()]
    x_BCHW = torch.randn(4, 3, 8, 8)
    for _ in range(2):  # what was undone can be sharded again
        shards = Shards(sharded, mesh)
        losses = []
        for model in (plain, sharded):
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
            loss = model(x_BCHW).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        shards.undo()
        assert [type(module) for module in sharded.modules()] == kinds
        assert not any(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        torch.testing.assert_close(dict(sharded.state_dict()), dict(plain.state_dict()))
        sharded.load_state_dict(plain.state_dict())  # calls the hooks, of which none is left


@pytest.mark.parametrize("name", [MODEL, "vmamba_nano_8", "mambavision_nano_8"])
def test_backbones_give_their_features_from_shards(name: str, mesh: DeviceMesh) -> None:
    backbone = timm.create_model(name, features_only=True).eval()
    x_BCHW = torch.randn(2, 3, 8, 8)
    plain = [feature.detach().clone() for feature in backbone(x_BCHW)]
    Shards(backbone, mesh)
    features = backbone(x_BCHW)
    torch.testing.assert_close(features, plain)
    features[-1].square().mean().backward()
    assert all(isinstance(parameter.grad, DTensor) for parameter in backbone.parameters() if parameter.grad is not None)


def test_the_state_of_an_optimiser_goes_into_shards_and_back(mesh: DeviceMesh) -> None:
    plain, sharded = timm.create_model(MODEL, **SMALL), timm.create_model(MODEL, **SMALL)
    Shards(sharded, mesh)
    optimisers = [torch.optim.AdamW(model.parameters()) for model in (plain, sharded)]
    plain(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimisers[0].step()
    saved = optimisers[0].state_dict()
    optimisers[1].load_state_dict(shard_state(optimisers[1], saved))
    assert isinstance(optimisers[1].state_dict()["state"][0]["exp_avg"], DTensor)
    torch.testing.assert_close(whole_state(optimisers[1].state_dict(), first=True)["state"], saved["state"])


class StopHereError(Exception):
    """Raised by `Stop`."""


class Stop(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            raise StopHereError


def fit(folder: Path, *, steps: int = 3, **options: Any) -> ClassificationTask:
    chosen = {"model_options": SMALL, "ema": 0.9, **options.pop("task", {})}
    task = ClassificationTask(MODEL, **chosen)
    images = SmallImageData("digits", val=0.5, train=None, size=8, batch_size=16)
    trainer = make_trainer(
        run_dir=folder, max_steps=steps, accelerator="cpu", progress=False, monitor="val/top1", mode="max", **options
    )
    trainer.fit(task, datamodule=images)
    return task


def test_a_run_is_saved_and_resumed_as_with_one_device(tmp_path: Path, group: None) -> None:
    tasks = {}
    for name, options in (("one", {}), ("shards", {"strategy": "fsdp"})):
        options["gradient_clip_val"] = 0.5
        tasks[name] = fit(tmp_path / name, steps=4, **options)
        with pytest.raises(StopHereError):
            fit(tmp_path / f"{name}-resumed", steps=4, callbacks=[Stop()], save_every_steps=1, **options)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        tasks[f"{name}-resumed"] = fit(tmp_path / f"{name}-resumed", steps=4, resume=True, **options)
        if distributed.is_initialized():
            distributed.destroy_process_group()
    state = dict(tasks["one"].state_dict())
    for name, task in tasks.items():
        assert not sharded_layers(task), name
        torch.testing.assert_close(dict(task.state_dict()), state, msg=name)
    found = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "shards")]
    for entry in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(found[1][entry], found[0][entry], msg=entry)


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_an_optimiser_that_reads_whole_parameters_is_refused(name: str, tmp_path: Path, group: None) -> None:
    refusal = f'{name.title()} does not train shards of parameters; use AdamW, or strategy "ddp"'
    with pytest.raises(UserError, match=refusal):
        fit(tmp_path, strategy="fsdp", task={"optimiser": name})


def test_the_cpu_s_kernels_are_refused(tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_kernels.backend._from_environment", "auto")
    with pytest.raises(UserError, match=r"the CPU kernels hold on to; .*MAMBA_KERNELS_BACKEND=reference"):
        fit(tmp_path, strategy="fsdp")


def test_a_shared_parameter_is_refused(tmp_path: Path, group: None) -> None:
    class Tied(ClassificationTask):
        def configure_model(self) -> None:
            super().configure_model()
            self.tied = nn.Linear(4, 4)
            self.tied.weight = nn.Parameter(torch.zeros(4, 4))
            self.twin = nn.Linear(4, 4)
            self.twin.weight = self.tied.weight

    trainer = make_trainer(run_dir=tmp_path, max_steps=1, accelerator="cpu", progress=False, strategy="fsdp")
    images = SmallImageData("digits", val=0.5, train=None, size=8, batch_size=16)
    with pytest.raises(UserError, match=r"cannot shard twin.weight, which two modules share"):
        trainer.fit(Tied(MODEL, model_options=SMALL), datamodule=images)
