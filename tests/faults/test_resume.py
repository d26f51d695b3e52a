"""A run that stopped for whatever reason continues as if it had not."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import Metric, MetricCollection

from mamba_apps.errors import UserError
from mamba_apps.training import AtomicCheckpointIO, make_trainer, resume_path

CASES: dict[str, dict[str, Any]] = {
    "steps": {},
    "epochs": {"max_epochs": 4},
    "plain loader": {"loader": "plain"},
    "validation inside the epoch": {"val_check_interval": 3, "loader": "plain"},
    "validation across epochs": {"check_val_every_n_epoch": None, "val_check_interval": 5, "plateau": False},
    "validation every other epoch": {"check_val_every_n_epoch": 2, "plateau": False},
    "accumulation": {"accumulate_grad_batches": 3, "max_steps": 15},
    "clipping": {"gradient_clip_val": 0.5},
    "schedule by the budget": {"max_epochs": 4, "plateau": False, "loader": "plain"},
}


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_the_unbroken_one(
    tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception], case: str, every: int
) -> None:
    options = CASES[case] | {"save_every_steps": every}
    whole = train(tmp_path / "whole", **options)
    # the epoch has 11 batches: inside one, on its last batch, on the first of the next
    for step in (6, 10, 11) if whole["steps"] <= 15 else (13, 21, 22):
        run_dir = tmp_path / f"broken-{step}"
        with pytest.raises(stop_error):
            train(run_dir, at={step: fail}, **options)
        assert train(run_dir, resume=True, **options) == whole, f"stopped in step {step}"


@pytest.mark.parametrize("case", ["steps", "epochs", "plain loader", "accumulation"])
@pytest.mark.parametrize("stop", [interrupt, terminate])
def test_signals_save_the_step_they_came_in(
    tmp_path: Path, train: Any, case: str, stop: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    options = CASES[case]
    whole = train(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt if stop is interrupt else SystemExit) as raised:
        train(tmp_path / "stopped", at={8: stop}, **options)
    if stop is terminate:
        assert raised.value.code == 143
    else:
        assert "Ctrl-C again" in capfd.readouterr().err
    saved = AtomicCheckpointIO().load_checkpoint(tmp_path / "stopped" / "last.ckpt")
    assert saved["global_step"] == 9
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(tmp_path / "stopped", resume=True, **options) == whole


@pytest.mark.parametrize("validation", [1, 4])
def test_validation_left_by_ctrl_c_is_run_on_resume(
    tmp_path: Path, runs: ModuleType, train: Any, validation: int
) -> None:
    """The last one is at the end of the budget, in the middle of an epoch."""
    whole = train(tmp_path / "whole")
    trainer, task, train_loader, val_loader = runs.build(tmp_path / "stopped")
    seen = []
    original = task.validation_step

    def validation_step(batch: Any, batch_idx: int) -> None:
        original(batch, batch_idx)
        seen.append(batch_idx)
        if seen.count(1) == validation and batch_idx == 1:
            interrupt()

    task.validation_step = validation_step
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(task, train_loader, val_loader)
    assert seen[-1] == 1
    resumed = train(tmp_path / "stopped", resume=True)
    if validation == 4:
        assert resumed.pop("loss") == "nan"  # nothing was left to train
        whole.pop("loss")
    assert resumed == whole


def test_second_ctrl_c_stops_at_once_and_leaves_what_was_saved(tmp_path: Path, train: Any) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at={8: twice}, save_every_steps=4)
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    assert train(tmp_path, resume=True)["steps"] == 40


def test_finished_run_is_not_continued(tmp_path: Path, train: Any) -> None:
    first = train(tmp_path)
    again = train(tmp_path, resume=True)
    assert again["weights"] == first["weights"]
    assert again["metrics"] == first["metrics"]


def test_longer_budget_continues_the_run(tmp_path: Path, train: Any) -> None:
    train(tmp_path, max_epochs=2)
    assert train(tmp_path, resume=True, max_epochs=3) == train(tmp_path.with_name("whole"), max_epochs=3)


def test_early_stopping_is_remembered(tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception]) -> None:
    options = {"max_epochs": 60, "patience": 2}
    whole = train(tmp_path / "whole", **options)
    assert whole["epochs"] < 60
    with pytest.raises(stop_error):
        train(tmp_path / "broken", at={whole["steps"] - 3: fail}, save_every_steps=1, **options)
    assert train(tmp_path / "broken", resume=True, **options) == whole
    assert train(tmp_path / "broken", resume=True, **options)["steps"] == whole["steps"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_last_falls_back_to_the_one_before(
    tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole")
    run_dir = tmp_path / "broken"
    with pytest.raises(stop_error):
        train(run_dir, at={18: fail}, save_every_steps=1)
    last = run_dir / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "missing":
        last.unlink()
    elif damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    assert resume_path(run_dir) == run_dir / "previous.ckpt"
    assert "resuming from previous.ckpt" in capsys.readouterr().err
    assert train(run_dir, resume=True) == whole


def test_no_good_checkpoint_is_said_so(tmp_path: Path, train: Any) -> None:
    train(tmp_path, max_steps=2)
    for path in tmp_path.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* agrees with its SHA-256"):
        resume_path(tmp_path)


def test_resume_without_a_checkpoint_starts(tmp_path: Path, train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume_path(tmp_path) is None
    assert train(tmp_path, resume=True, max_steps=3)["steps"] == 3
    assert "starting from the beginning" in capsys.readouterr().err


def test_a_budget_of_fewer_epochs_than_were_trained_is_refused(tmp_path: Path, train: Any) -> None:
    train(tmp_path, max_epochs=2, max_steps=None)
    with pytest.raises(UserError, match=r"last\.ckpt has trained 2 epochs, and max_epochs is less; give at least 2"):
        train(tmp_path, resume=True, max_epochs=1, max_steps=None)


def test_folder_of_another_run_is_not_overwritten(tmp_path: Path, train: Any) -> None:
    train(tmp_path, max_steps=2)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path, max_steps=2)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path, runs: ModuleType, train: Any) -> None:
    train(tmp_path, max_steps=2)
    trainer, _, train_loader, val_loader = runs.build(tmp_path, resume=True)
    with pytest.raises(UserError, match=r"last\.ckpt belongs to another model \(other shape net\.0\.weight"):
        trainer.fit(runs.Task(width=5), train_loader, val_loader)
    trainer, task, train_loader, val_loader = runs.build(tmp_path, resume=True)
    task.net.append(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"belongs to another model \(missing net\.5\.weight, net\.5\.bias\)"):
        trainer.fit(task, train_loader, val_loader)
    trainer, task, train_loader, val_loader = runs.build(tmp_path, resume=True)
    task.net[-1] = torch.nn.Identity()
    with pytest.raises(UserError, match=r"belongs to another model \(unexpected net\.4\.weight, net\.4\.bias\)"):
        trainer.fit(task, train_loader, val_loader)


def test_another_optimizer_is_refused(tmp_path: Path, runs: ModuleType, train: Any) -> None:
    train(tmp_path, max_steps=2)
    trainer, task, train_loader, val_loader = runs.build(tmp_path, resume=True)
    task.configure_optimizers = lambda: torch.optim.Adam(task.net[0].parameters())
    with pytest.raises(UserError, match="another model or optimizer"):
        trainer.fit(task, train_loader, val_loader)


def test_another_seed_is_refused(tmp_path: Path, runs: ModuleType, train: Any) -> None:
    train(tmp_path, max_steps=2)
    trainer = make_trainer(
        run_dir=tmp_path, max_steps=4, seed=2, monitor="val_loss", patience=30, resume=True, progress=False
    )
    with pytest.raises(UserError, match="belongs to a run with seed 1, this one has seed 2"):
        trainer.fit(runs.Task(), runs.train_loader("resumable"), runs.val_loader())


def test_error_in_training_leaves_a_resumable_run_even_in_the_first_step(
    tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception]
) -> None:
    with pytest.raises(stop_error):
        train(tmp_path / "broken", at={0: fail})
    assert train(tmp_path / "broken", resume=True) == train(tmp_path / "whole")


def test_metrics_file_has_every_step_once(tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception]) -> None:
    options = {"log_every_n_steps": 1, "save_every_steps": 4}
    with pytest.raises(stop_error):
        train(tmp_path, at={18: fail}, **options)
    train(tmp_path, resume=True, **options)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["train_loss_step"]]
    assert steps == list(range(40))


class Counting(pl.Callback):
    """Count the batches, and keep the count in the checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    @property
    def state_key(self) -> str:
        return self.name

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def test_two_callbacks_keep_their_states(tmp_path: Path, train: Any, fail: Any, stop_error: type[Exception]) -> None:
    with pytest.raises(stop_error):
        train(tmp_path, at={18: fail}, save_every_steps=4, callbacks=[Counting("one"), Counting("two")])
    resumed = [Counting("one"), Counting("two")]
    train(tmp_path, resume=True, callbacks=resumed)
    assert [callback.count for callback in resumed] == [40, 40]


class Total(Metric):
    """A sum."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: torch.Tensor) -> None:
        self.total = self.total + value.sum()

    def compute(self) -> torch.Tensor:
        return self.total


class Doubled(Total):
    """Twice the sum: torchmetrics updates one of the two and lends its state to the other."""

    def compute(self) -> torch.Tensor:
        return 2 * self.total


def test_metrics_that_share_a_state_continue(
    tmp_path: Path, runs: ModuleType, fail: Any, stop_error: type[Exception]
) -> None:
    class Scored(runs.Task):
        def __init__(self) -> None:
            super().__init__()
            self.scores = MetricCollection([Total(), Doubled()])

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.scores.update(batch[0])
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log_dict(self.scores.compute())
            self.scores.reset()

    def run(run_dir: Path, *, stop: int | None = None, resume: bool = False) -> Any:
        trainer, _, train_loader, val_loader = runs.build(run_dir, resume=resume, save_every_steps=1)
        task = Scored()
        task.report = lambda step: fail() if step == stop else None
        trainer.fit(task, train_loader, val_loader)
        return runs.fingerprint(task, trainer)

    whole = run(tmp_path / "whole")
    assert float.fromhex(whole["logged"]["Doubled"]) == 2 * float.fromhex(whole["logged"]["Total"])
    with pytest.raises(stop_error):
        run(tmp_path / "broken", stop=38)  # in the last epoch, whose totals are compared
    assert run(tmp_path / "broken", resume=True) == whole


def test_spent_seconds_are_remembered(tmp_path: Path, train: Any) -> None:
    first = train(tmp_path, max_seconds=0.3)
    assert first["steps"] > 1
    again = train(tmp_path, resume=True, max_seconds=0.3)
    assert again["weights"] == first["weights"]
    assert train(tmp_path, resume=True, max_seconds=1.0)["steps"] > first["steps"]


class Numbers:
    """A loader that keeps its own place, as litdata's does."""

    def __init__(self) -> None:
        self.place = 0

    def __len__(self) -> int:
        return 9

    def __iter__(self) -> Any:
        while self.place < len(self):
            self.place += 1
            yield torch.full((4, 6), self.place / 10), torch.ones(4, 1)
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def test_loader_with_a_state_of_its_own(
    tmp_path: Path, runs: ModuleType, fail: Any, stop_error: type[Exception]
) -> None:
    def run(run_dir: Path, *, stop: int | None = None, resume: bool = False) -> Any:
        trainer, task, _, val_loader = runs.build(run_dir, resume=resume, save_every_steps=1)
        task.report = lambda step: fail() if step == stop else None
        trainer.fit(task, Numbers(), val_loader)
        return runs.fingerprint(task, trainer)

    whole = run(tmp_path / "whole")
    with pytest.raises(stop_error):
        run(tmp_path / "broken", stop=14)
    assert run(tmp_path / "broken", resume=True) == whole


def test_checkpoint_saved_by_hand_still_loads(tmp_path: Path, runs: ModuleType) -> None:
    class SaveInside(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "by-hand.ckpt")

    trainer, task, train_loader, val_loader = runs.build(tmp_path / "one", callbacks=[SaveInside()], max_steps=6)
    trainer.fit(task, train_loader, val_loader)
    trainer, task, train_loader, val_loader = runs.build(tmp_path / "two", max_steps=8)
    with pytest.warns(UserWarning, match="not resumable|callbacks used to create"):
        trainer.fit(task, train_loader, val_loader, ckpt_path=tmp_path / "by-hand.ckpt")
    assert trainer.global_step == 8
