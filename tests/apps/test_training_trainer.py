"""make_trainer: budgets, what is kept, what is said."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mamba_apps.errors import UserError
from mamba_apps.training import AtomicCheckpointIO, ResumableLoader, make_trainer, seed_everything
from mamba_apps.training.progress import RunProgress
from mamba_apps.training.progress_lines import ProgressLines


class Task(pl.LightningModule):
    """A regression whose validation scores are given, one for each validation."""

    def __init__(self, scores: tuple[float, ...] = (), pause: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.scores = list(scores)
        self.pause = pause
        self.validated_at: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.pause)
        loss = self.net(batch[0]).pow(2).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated_at.append(self.global_step)
        score = self.scores[len(self.validated_at) - 1] if self.scores else self.net(batch[0]).pow(2).mean()
        self.log("val_loss", torch.as_tensor(score, dtype=torch.float32))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


DATA = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return ResumableLoader(DATA, batch_size=8), DataLoader(DATA, batch_size=20)


def fit(run_dir: Path, task: Task | None = None, **options: Any) -> pl.Trainer:
    seed_everything(0)
    trainer = make_trainer(run_dir=run_dir, **({"progress": False, "accelerator": "cpu"} | options))
    trainer.fit(task or Task(), *loaders())
    return trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one budget, found none; give one of max_epochs, max_steps, max_seconds"),
        ({"max_epochs": 1, "max_steps": 2}, "exactly one budget, found max_epochs and max_steps"),
        ({"max_epochs": 0}, "max_epochs is 0; give a number above 0"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
        ({"max_epochs": 1, "patience": 3}, "patience is 3 but no metric is monitored"),
        ({"max_epochs": 1, "patience": 0, "monitor": "x"}, "patience is 0"),
        ({"max_epochs": 1, "mode": "best"}, "mode is 'best'; use min or max"),
        ({"max_epochs": 1, "save_every_steps": 0}, "save_every_steps is 0"),
        ({"max_epochs": 1, "seed": -1}, "seed is -1"),
        ({"max_epochs": 1, "accelerator": "abacus"}, "these trainer options do not work: .*abacus"),
        ({"max_epochs": 1, "val_check_interval": "often"}, "these trainer options do not work"),
        ({"max_epochs": 1, "accelerator": "cpu", "devices": 9999}, "9999 devices were asked of a CPU with .* at most"),
        ({"max_epochs": 1, "accumulate_grad_batches": 0}, "accumulate_grad_batches is 0; give a number above 0"),
        ({"max_epochs": 1, "val_check_interval": 0.0}, "val_check_interval is 0.0"),
        ({"max_epochs": 1, "check_val_every_n_epoch": -1}, "check_val_every_n_epoch is -1"),
        ({"max_epochs": 1, "gradient_clip_val": -1.0}, "gradient_clip_val is -1.0; give at least 0"),
        ({"max_epochs": 1, "speed": 3}, "these trainer options do not work: .*speed"),
        ({"max_epochs": 1, "strategy": "fsdpp"}, "unknown strategy 'fsdpp'; did you mean 'fsdp'"),
        ({"max_epochs": 1, "strategy": "deepspeed"}, 'the strategy deepspeed shards the model .* use strategy "fsdp"'),
        ({"max_epochs": 1, "strategy": "fsdp", "precision": "16-mixed"}, "does not scale losses, as fp16 needs it"),
        ({"max_epochs": 1, "strategy": "fsdp", "graph": True}, "fsdp gathers shards; leave out trainer.graph"),
        ({"max_epochs": 1, "strategy": FSDPStrategy()}, "the strategy FSDPStrategy shards the model"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(run_dir=tmp_path, **options)


def test_a_cpu_with_one_core_still_tries_a_few_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_apps.training.refusals.usable_cores", lambda: 1)
    options: dict[str, Any] = {"run_dir": tmp_path, "max_epochs": 1, "accelerator": "cpu", "strategy": "ddp"}
    assert make_trainer(devices=4, **options).num_devices == 4
    with pytest.raises(UserError, match=r"5 devices were asked of a CPU with 1 cores: .*; give devices at most 4"):
        make_trainer(devices=5, **options)


def test_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        make_trainer(run_dir=tmp_path / "run", max_epochs=1)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"max_epochs": 3}, 15), ({"max_steps": 7}, 7), ({"max_steps": 7, "precision": "bf16-mixed"}, 7)],
)
def test_budgets(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    task = Task()
    assert fit(tmp_path, task, **options).global_step == steps
    # the weights that the run ends with were validated, wherever in the epoch that was
    assert task.validated_at[-1] == steps


def test_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    task = Task(pause=0.01)
    trainer = fit(tmp_path, task, max_seconds=0.5)
    assert 0.5 <= time.monotonic() - began < 10
    assert trainer.global_step > 2
    assert task.validated_at[-1] == trainer.global_step


def test_best_is_the_best_and_last_the_last(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Task((3, 1, 2, 1.5)), max_epochs=4, monitor="val_loss")
    load = AtomicCheckpointIO().load_checkpoint
    assert load(tmp_path / "best.ckpt")["global_step"] == 10
    assert load(tmp_path / "last.ckpt")["global_step"] == 20
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "best.ckpt")
    assert trainer.checkpoint_callback.best_model_score == 1
    task = Task()
    seen = trainer.validate(task, loaders()[1], ckpt_path="best", verbose=False)
    assert torch.equal(task.net.weight, load(tmp_path / "best.ckpt")["state_dict"]["net.weight"])
    assert seen[0]["val_loss"] > 0


def test_best_of_a_metric_to_be_maximised(tmp_path: Path) -> None:
    fit(tmp_path, Task((3, 1, 4, 1.5)), max_epochs=4, monitor="val_loss", mode="max")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt")["global_step"] == 15


def test_best_of_a_metric_of_training(tmp_path: Path) -> None:
    trainer = make_trainer(run_dir=tmp_path, max_epochs=3, monitor="train_loss", progress=False, accelerator="cpu")
    task = Task()
    task.validation_step = None
    trainer.fit(task, loaders()[0])
    assert (tmp_path / "best.ckpt").is_file()


def test_patience(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Task((3, 1, 2, 2, 2, 2)), max_epochs=6, monitor="val_loss", patience=2)
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("patience", [None, 2])
def test_monitor_that_is_not_logged(tmp_path: Path, patience: int | None) -> None:
    with pytest.raises(UserError, match=r"'val_mae' was not logged \(logged: train_loss, val_loss\)"):
        fit(tmp_path, max_epochs=2, monitor="val_mae", patience=patience)


def test_metrics_file(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=2, log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train_loss"]] == [str(step) for step in range(10)]
    assert [row["step"] for row in rows if row["val_loss"]] == ["4", "9"]
    assert all(float(row["val_loss"]) > 0 for row in rows if row["val_loss"])


def test_no_metrics_file_without_a_logger(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1, logger=False)
    assert not (tmp_path / "metrics.csv").exists()


def test_same_seed_same_run(tmp_path: Path) -> None:
    def weights(run_dir: Path, seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        task = Task()
        trainer = make_trainer(run_dir=run_dir, max_epochs=2, seed=seed, progress=False, accelerator="cpu")
        torch.rand(seed + 5)  # what is drawn between making the trainer and training does not matter
        trainer.fit(task, DataLoader(DATA, batch_size=8, shuffle=True), loaders()[1])
        return task.net.weight

    first = weights(tmp_path / "a", 1)
    assert torch.equal(first, weights(tmp_path / "b", 1))
    assert not torch.equal(first, weights(tmp_path / "c", 2))


def test_deterministic_and_clipping_are_passed_on(tmp_path: Path) -> None:
    try:
        trainer = fit(tmp_path, max_steps=2, deterministic=True, gradient_clip_val=0.1)
        assert torch.are_deterministic_algorithms_enabled()
        assert trainer.gradient_clip_val == 0.1
    finally:
        torch.use_deterministic_algorithms(False)


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.batches += 1


def test_further_callbacks(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    fit(tmp_path, max_steps=3, callbacks=[one, two])
    assert (one.batches, two.batches) == (3, 3)


def bar(run_dir: Path, **options: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None)
    draws = RunProgress(options.get("max_seconds"), console)
    trainer = make_trainer(run_dir=run_dir, progress=False, accelerator="cpu", callbacks=[draws], **options)
    task = Task(pause=0.005)
    trainer.fit(task, *loaders())
    fitted = console.file.getvalue()
    trainer.validate(task, loaders()[1], verbose=False)
    assert "validating" in console.file.getvalue()[len(fitted) :]
    return fitted


@pytest.mark.parametrize(
    ("options", "steps"), [({"max_epochs": 2}, 10), ({"max_steps": 7}, 7), ({"max_seconds": 0.3}, None)]
)
def test_one_bar(tmp_path: Path, options: dict[str, Any], steps: int | None) -> None:
    drawn = bar(tmp_path, **options)
    assert drawn.count("\n") == 1, "one bar leaves one line"
    last = drawn.split("\r")[-2] if drawn.endswith("\r\n") else drawn.splitlines()[-2]
    assert "trained" in drawn
    assert "train_loss" in drawn
    if steps is not None:
        assert f"step {steps}" in drawn
    assert "━" in last or "━" in drawn


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task()
    for seconds, lines in ((30, 0), (0, 4)):
        options: dict[str, Any] = {"accelerator": "cpu", "callbacks": [ProgressLines(seconds)], "progress": False}
        trainer = make_trainer(run_dir=tmp_path / str(seconds), max_steps=4, **options)
        trainer.fit(task, *loaders())
        trainer.validate(task, loaders()[1], verbose=False)
        said = capsys.readouterr().err.splitlines()
        training = [line for line in said if line.startswith("training: step ")]
        assert len(training) == lines
    assert re.fullmatch(r"training: step 4 of 4 · train_loss \S+ · 0:00:\d\d", training[-1])
    assert re.fullmatch(r"validating: batch 1 of 2 · 0:00:\d\d", said[-1])
    trainer = make_trainer(run_dir=tmp_path / "own", max_epochs=1, accelerator="cpu")
    assert any(isinstance(callback, ProgressLines) for callback in trainer.callbacks)


class Data(pl.LightningDataModule):
    """The loaders as a command line makes them."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loaders()[0]

    def val_dataloader(self) -> DataLoader[Any]:
        return loaders()[1]


def test_lightning_cli_makes_it_with_all_options_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["program"])
    # Lightning 2.6 calls what jsonargparse has deprecated
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    arguments = {"run_dir": tmp_path, "max_steps": 4, "monitor": "val_loss", "gradient_clip_val": 0.5}
    trainer = LightningCLI(
        Task,
        Data,
        trainer_class=make_trainer,
        seed_everything_default=False,
        save_config_callback=None,
        args=["fit", *(f"--trainer.{name}={value}" for name, value in arguments.items())],
    ).trainer
    assert (trainer.global_step, trainer.gradient_clip_val) == (4, 0.5)
    assert (tmp_path / "best.ckpt").is_file()
    assert (tmp_path / "metrics.csv").is_file()


def test_trial_run_saves_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, max_epochs=3, fast_dev_run=2).global_step == 2
    assert not list(tmp_path.iterdir())


PROGRAM = """
    import sys, torch
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_training_trainer as this

    run_dir = Path(sys.argv[2])
    this.fit(run_dir, max_epochs=2, monitor="val_loss", patience=5, progress=True, max_steps=None)
    trainer = this.make_trainer(run_dir=run_dir, max_epochs=3, monitor="val_loss", patience=5, resume=True)
    trainer.fit(this.Task(), *this.loaders())
    trainer.validate(this.Task(), this.loaders()[1], verbose=False)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, check=False
    )


def test_nothing_is_said_where_nobody_watches(tmp_path: Path) -> None:
    done = run(PROGRAM, str(Path(__file__).parent), str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_is_cheap() -> None:
    program = """
        import sys
        import mamba_apps.training
        assert not {"torch", "lightning", "numpy"} & sys.modules.keys(), sorted(sys.modules)
        assert "make_trainer" in dir(mamba_apps.training)
        mamba_apps.training.load_card
        assert not {"torch", "lightning", "numpy"} & sys.modules.keys(), sorted(sys.modules)
        try:
            mamba_apps.training.nothing
        except AttributeError:
            print("fine")
    """
    done = run(program)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_graph_on_a_cpu_changes_nothing_and_needs_a_network(tmp_path: Path) -> None:
    from mamba_apps.training.graph import GraphedTraining

    trainer = make_trainer(run_dir=tmp_path, max_steps=1, graph=True, progress=False)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, GraphedTraining)]
    module = pl.LightningModule()
    with pytest.raises(UserError, match="has no network to capture"):
        callback.on_train_start(trainer, module)
    module.network = torch.nn.Linear(1, 1)
    callback.on_train_start(trainer, module)
    assert "forward" not in module.network.__dict__
    callback.on_train_end(trainer, module)


def test_a_graph_for_several_processes_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one GPU, and several devices train; leave out trainer\.graph"):
        make_trainer(run_dir=tmp_path, max_steps=1, graph=True, accelerator="cpu", devices=2, progress=False)


@pytest.mark.parametrize("ends", ["teardown", "on_exception"])
def test_tf32_is_put_back_however_a_run_ends(tmp_path: Path, ends: str) -> None:
    from mamba_apps.training.tf32 import TF32Products

    trainer = make_trainer(run_dir=tmp_path, max_steps=1, tf32=True, progress=False)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, TF32Products)]
    callback.setup(trainer, Task(), "fit")
    assert torch.get_float32_matmul_precision() == "highest"  # not on a GPU
    on_gpu: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    callback.setup(on_gpu, Task(), "fit")
    assert torch.get_float32_matmul_precision() == "high"
    if ends == "teardown":
        callback.teardown(on_gpu, Task(), "fit")
    else:
        callback.on_exception(on_gpu, Task(), ValueError())
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_trains_without_a_graph_although_one_was_asked_for_is_refused(tmp_path: Path) -> None:
    from mamba_apps.training.graph import GraphedTraining
    from mamba_kernels.graphs import ReplayedTraining

    callback, task = GraphedTraining(), Task()
    callback._replayed = ReplayedTraining(task.net)
    task.net(torch.zeros(2, 4))  # not on a GPU: runs as ever
    with pytest.raises(UserError, match=r"no pass of Task can be captured; leave out trainer\.graph"):
        callback.on_train_batch_end(None, task, None, None, 0)  # type: ignore[arg-type]
    callback.on_train_end(None, task)  # type: ignore[arg-type]
    callback.on_train_batch_end(None, task, None, None, 1)  # type: ignore[arg-type]


class OneBuffer(torch.autograd.Function):
    """A product whose weight's gradient always lies in the same memory, as that of a replayed pass does."""

    buffer = torch.empty(4)

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x @ weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return None, OneBuffer.buffer.copy_(grad @ x).detach()


class Product(nn.Module):
    def __init__(self, static: bool) -> None:
        super().__init__()
        self.weight, self.static = nn.Parameter(torch.ones(4)), static

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OneBuffer.apply(x, self.weight) if self.static else x @ self.weight


@pytest.mark.parametrize("accumulated", [1, 3])
def test_gradients_of_replayed_passes_accumulate(tmp_path: Path, accumulated: int) -> None:
    weights = []
    for static in (False, True):
        task = Task()
        task.network = task.net = Product(static)
        options = {"graph": static, "accumulate_grad_batches": accumulated, "gradient_clip_val": 1.0}
        fit(tmp_path / str(static), task, max_steps=3, **options)
        weights.append(task.net.weight.detach())
    assert not torch.equal(weights[0], torch.ones(4))
    torch.testing.assert_close(weights[1], weights[0])
