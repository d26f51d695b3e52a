"""Steps that are taken whole are those that Lightning takes, on a CPU run as they are and on a GPU replayed."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, LambdaCallback
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mamba_apps.errors import UserError
from mamba_apps.forecasting import ForecastTask, WindowData
from mamba_apps.forecasting.ltsf import LtsfData, LtsfTask
from mamba_apps.training import NonFiniteLossError, ResumableLoader, make_trainer
from mamba_apps.training.adamw import adamw
from mamba_apps.training.graph import GraphedTraining
from mamba_apps.training.whole_step import WholeStep, fuse, whole_step
from mamba_datasets.series import Columns, read_series
from mamba_kernels.graphs import ReplayedCall

on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("gpu", marks=on_a_gpu)]


class Task(pl.LightningModule):
    """A network with running averages, dropout, a parameter that nothing reaches, and one that another also reaches."""

    steps_whole = True

    def __init__(self, drop: float = 0.2, fused: bool = True) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(drop), nn.Linear(8, 1)
        )
        self.left, self.right, self.unused = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        self.fused, self.losses = fused, list[Tensor]()

    def loss_of(self, batch: list[Tensor]) -> Tensor:
        x_B3, y_B1 = batch
        return (self.network(x_B3) + self.left + self.right - y_B1).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("train/loss", loss)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss_of(batch))

    def configure_optimizers(self) -> Any:
        found: Any = adamw(self, self, lr=0.05, weight_decay=0.1)
        for group in found["optimizer"].param_groups:
            group["fused"] = self.fused
        return found


class Whole(GraphedTraining):
    """Takes whole steps on a CPU too, where they run without a graph."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._begin_whole(trainer, pl_module)
        self.step = self._whole

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.step.captured
        super().on_train_end(trainer, pl_module)


def data(spoilt: int | None = None, rows: int = 22) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x_N3 = torch.randn(rows, 3, generator=generator)
    y_N1 = x_N3.sum(1, keepdim=True)
    if spoilt is not None:
        x_N3[spoilt] = torch.nan
    return TensorDataset(x_N3, y_N1)


def fit(
    folder: Path, task: Task, *, whole: bool, spoilt: int | None = None, rows: int = 22, **options: Any
) -> pl.Trainer:
    """Train in batches of 4, of which every sixth has 2 where there are 22 rows."""
    steps = [Whole()] if whole else []
    options = {"max_steps": 15, "accelerator": "cpu", "gradient_clip_val": 0.5, "log_every_n_steps": 1, **options}
    callbacks = [*steps, *options.pop("callbacks", [])]
    trainer = make_trainer(run_dir=folder, seed=1, progress=False, callbacks=callbacks, **options)
    torch.manual_seed(5)
    task.__init__(fused=task.fused)  # type: ignore[misc]
    trainer.fit(task, ResumableLoader(data(spoilt, rows), 4, seed=2), ResumableLoader(data(), 11, shuffle=False))
    return trainer


@pytest.mark.parametrize("accelerator", DEVICES)
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": None}, {"gradient_clip_val": 0}, {"precision": "bf16-mixed"}, {"rows": 24}],
    ids=str,
)
def test_whole_steps_are_those_of_lightning(tmp_path: Path, options: dict[str, Any], accelerator: str) -> None:
    plain, whole = Task(), Task()
    options = {"accelerator": accelerator, **options}
    trainers = [fit(tmp_path / str(i), task, whole=i == 1, **options) for i, task in enumerate((plain, whole))]
    first, second = (trainer.fit_loop.state_dict() for trainer in trainers)
    assert first == second
    assert [trainer.global_step for trainer in trainers] == [15, 15]
    # rates are rounded to float32
    near = {"rtol": 1e-5, "atol": 1e-6} if accelerator == "cpu" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(torch.stack(whole.losses), torch.stack(plain.losses), **near)
    torch.testing.assert_close(whole.state_dict(), plain.state_dict(), **near)
    states = [trainer.optimizers[0].state_dict() for trainer in trainers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[1]["state"], states[0]["state"], **near)
    rows = [(tmp_path / str(i) / "metrics.csv").read_text().splitlines() for i in (0, 1)]
    assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]]


class Stop(Callback):
    """Ends the run before the step after some, which is the last that is saved."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps + 1:
            raise RuntimeError("killed")


@pytest.mark.parametrize("accelerator", DEVICES)
# Before, in and after an epoch's last batch, which is smaller; and before one that is as the others are.
@pytest.mark.parametrize(("stop", "rows"), [(1, 22), (4, 22), (5, 22), (6, 22), (8, 22), (5, 24)])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, stop: int, rows: int, accelerator: str) -> None:
    unbroken, resumed = Task(fused=False), Task(fused=False)
    options = {"accelerator": accelerator, "save_every_steps": 1, "rows": rows}
    fit(tmp_path / "unbroken", unbroken, whole=True, **options)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "broken", resumed, whole=True, callbacks=[Stop(stop)], **options)
    fit(tmp_path / "broken", resumed, whole=True, resume=True, **options)
    assert len(resumed.losses) == 15 - stop
    torch.testing.assert_close(resumed.losses, unbroken.losses[stop:], rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def test_gradients_that_accumulate_from_an_epoch_on_do_so(tmp_path: Path) -> None:
    plain, whole = Task(), Task()
    for i, task in enumerate((plain, whole)):
        accumulates = GradientAccumulationScheduler({1: 2})
        trainer = fit(tmp_path / str(i), task, whole=i == 1, max_steps=12, callbacks=[accumulates])
        assert trainer.current_epoch == 3  # six steps, then three an epoch
    torch.testing.assert_close(whole.losses, plain.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accelerator", DEVICES)
def test_a_run_that_has_ended_holds_no_capture(tmp_path: Path, accelerator: str) -> None:
    found = list[weakref.ref[WholeStep]]()

    class Asks(Whole):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found.append(weakref.ref(self.step))
            super().on_train_end(trainer, pl_module)
            del self.step

    gc.disable()  # memory of a graph that waits for it may be what the next run lacks
    try:
        fit(tmp_path, Task(), whole=False, callbacks=[Asks()], accelerator=accelerator)
        assert found[0]() is None
    finally:
        gc.enable()


def test_a_run_of_whole_steps_goes_on_without(tmp_path: Path) -> None:
    task = Task(fused=False)
    fit(tmp_path, task, whole=True, max_steps=7)
    trainer = fit(tmp_path, task, whole=False, resume=True)
    assert trainer.global_step == 15
    assert not any(group["fused"] or isinstance(group["lr"], Tensor) for group in trainer.optimizers[0].param_groups)


@pytest.mark.parametrize("accelerator", DEVICES)
def test_what_is_not_finite_stops_the_run(tmp_path: Path, accelerator: str) -> None:
    with pytest.raises(NonFiniteLossError, match=r"the loss is n.* at step \d \(epoch 0, batch \d\)"):
        fit(tmp_path, Task(), whole=True, spoilt=9, accelerator=accelerator)


def test_a_training_step_that_does_more_is_refused(tmp_path: Path) -> None:
    class More(Task):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return 2 * super().training_step(batch, batch_idx)

    with pytest.raises(UserError, match=r"More\.training_step does not return the loss of loss_of"):
        fit(tmp_path, More(), whole=True)


class Looks(Callback):
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass


class Scales(Task):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()


class Passes(Task):
    steps_whole = False


class Descends(Task):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Task, {"accumulate_grad_batches": 2}),
        (Task, {"gradient_clip_algorithm": "value"}),
        (Task, {"precision": "64-true"}),
        (Task, {"callbacks": [Looks()]}),
        (Task, {"callbacks": [LambdaCallback(on_after_backward=lambda trainer, task: None)]}),
        *((kind, {}) for kind in (Scales, Passes, Descends)),
    ],
)
def test_what_happens_within_a_step_is_not_passed_by(tmp_path: Path, kind: type[Task], options: dict[str, Any]) -> None:
    found = list[WholeStep | None]()

    class Asks(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found.append(whole_step(trainer, pl_module, known=[trainer.run_checkpoints.guard]))

    options = {**options, "callbacks": [Asks(), *options.get("callbacks", [])], "max_steps": 1}
    fit(tmp_path / "a", kind(), whole=False, **options)
    assert found == [None]
    fit(tmp_path / "b", Task(), whole=False, max_steps=1, callbacks=[Asks()])
    assert isinstance(found[1], WholeStep)


def test_a_fused_update_goes_on_where_another_stopped(tmp_path: Path) -> None:
    class Fuses(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            fuse(trainer.optimizers)

    plain, fused = Task(fused=False), Task(fused=False)
    fit(tmp_path / "plain", plain, whole=False)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "fused", fused, whole=False, save_every_steps=1, callbacks=[Stop(7)])
    trainer = fit(tmp_path / "fused", fused, whole=False, resume=True, callbacks=[Fuses()])
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)
    torch.testing.assert_close(fused.losses, plain.losses[7:], rtol=1e-4, atol=1e-5)
    fuse([torch.optim.SGD(fused.parameters(), lr=0.1)])


def test_only_batches_like_the_first_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    step = WholeStep(task, task.loss_of, optimizer, clip=None)
    steps, replays = list[Any](), list[Any]()
    run, replay = step._step, ReplayedCall.__call__
    monkeypatch.setattr(step, "_step", lambda batch: steps.append(batch) or run(batch))
    monkeypatch.setattr(ReplayedCall, "__call__", lambda self, *x: replays.append(x) or replay(self, *x))

    def is_replayed(batch: Any, **options: bool) -> bool:
        before = len(replays)
        assert step(batch, **options).isfinite().all()
        return len(replays) > before

    batch = [torch.randn(4, 3), torch.randn(4, 1)]
    assert not is_replayed([x[:2] for x in batch], odd=True)
    assert not step.captured
    assert is_replayed(batch)
    assert step.captured
    assert not is_replayed([x[:2] for x in batch])
    assert not is_replayed(tuple(batch))
    assert is_replayed([x.clone() for x in batch], odd=True)  # an epoch's last batch may be like the others
    optimizer.param_groups[0]["lr"] = 0.05
    assert is_replayed(batch)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    assert not is_replayed(batch)
    optimizer.param_groups[0]["weight_decay"] = 0.01
    task.left.requires_grad_(False)
    assert not is_replayed(batch)
    task.left.requires_grad_(True)
    assert is_replayed(batch)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert not is_replayed(batch)
    assert len(steps) == 10  # each step is taken once
    step.free()
    assert not step.captured


def test_what_is_more_than_tensors_is_not_captured() -> None:
    task = Task()
    step = WholeStep(task, task.loss_of, torch.optim.AdamW(task.parameters()), clip=None)

    class Pair(list[Tensor]):  # a leaf
        pass

    step(Pair([torch.randn(4, 3), torch.randn(4, 1)]))
    assert not step.captured


@pytest.mark.parametrize("begun", [False, True])
def test_rehearsals_do_not_show(begun: bool) -> None:
    task = Task()
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    step = WholeStep(task, partial(Task.loss_of, task), optimizer, clip=1.0)
    batch = [torch.randn(4, 3), torch.randn(4, 1)]
    if begun:
        task.loss_of(batch).backward()
        optimizer.step()
    restore = step._remember()
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    state = {key: value.clone() for found in optimizer.state.values() for key, value in found.items()}
    for _ in range(3):
        step(batch)
    assert not torch.equal(task.network[0].weight, weights["network.0.weight"])
    restore()
    torch.testing.assert_close(dict(task.state_dict()), weights, rtol=0, atol=0)
    now = {key: value for found in optimizer.state.values() for key, value in found.items()}
    for key, value in now.items():
        torch.testing.assert_close(value, state[key] if begun else torch.zeros_like(value), rtol=0, atol=0)


@pytest.mark.parametrize("model", ["patch", "dlinear", "smamba"])
@pytest.mark.parametrize("accelerator", DEVICES)
def test_a_forecaster_learns_the_same_from_windows_gathered_in_its_step(
    tmp_path: Path, model: str, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = pd.date_range("2024-01-01", periods=60, freq="h")
    y = np.random.default_rng(0).normal(size=(3, 60)).cumsum(1)
    frame = pd.DataFrame({"unique_id": np.repeat(list("abc"), 60), "ds": np.tile(hours, 3), "y": y.ravel()})
    found = []
    for whole in (False, True):
        windows = WindowData(read_series(frame, freq="h").with_calendar(), lookback=12, horizon=4, val_steps=8)
        windows.batch_size = 32
        if whole:  # on a CPU too
            resident = Columns.of(windows.scaled)
            monkeypatch.setattr(windows, "_columns_on", resident.to)
            monkeypatch.setattr(windows, "_placed", lambda part, of=windows: part.gathered_from(of._columns_on(of.on)))
            windows.on = "cuda" if accelerator == "gpu" else "cpu"
        steps = Whole()
        trainer = make_trainer(
            run_dir=tmp_path / str(whole),
            max_steps=9,
            accelerator=accelerator,
            gradient_clip_val=1.0,
            progress=False,
            callbacks=[steps] if whole else [],
        )
        task = ForecastTask(model, sizes=windows.sizes, quantiles=(0.1, 0.5, 0.9), loss="mae")
        torch.manual_seed(1)
        task._make_network(windows.sizes)
        trainer.fit(task, datamodule=windows)
        found.append(({name: float(value) for name, value in trainer.callback_metrics.items()}, task.state_dict()))
        assert not whole or steps.step._layout[0].num_leaves == 1  # where the windows lie
    assert found[0][0].keys() >= {"train/loss", "val/mae"}
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4 if accelerator == "cpu" else 2e-2)
    if accelerator == "cpu":
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accelerator", DEVICES)
def test_a_benchmark_s_network_learns_the_same_in_whole_steps(tmp_path: Path, accelerator: str) -> None:
    hour_T = np.arange(300)
    table = pd.DataFrame({"a": np.sin(hour_T / 4), "OT": np.cos(hour_T / 3)})
    table.insert(0, "date", pd.date_range("2020-01-01", periods=300, freq="h").astype(str))
    table.to_csv(tmp_path / "toy.csv", index=False)
    found = []
    for whole in (False, True):
        windows = LtsfData(str(tmp_path), "toy", lookback=24, horizon=6, batch_size=32)
        trainer = make_trainer(
            run_dir=tmp_path / str(whole),
            max_steps=8,
            accelerator=accelerator,
            progress=False,
            callbacks=[Whole()] if whole else [],
        )
        task = LtsfTask("itransformer", model_options={"d_model": 8, "heads": 2, "dropout": 0.0}, lr=1e-3)
        trainer.fit(task, datamodule=windows)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert found[0].keys() == {"train/loss", "val/mse", "val/mae"}
    assert found[1] == pytest.approx(found[0], rel=1e-4 if accelerator == "cpu" else 1e-2)
