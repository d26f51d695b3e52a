"""A loss, gradient or metric that is not finite stops the run and keeps the last good weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mamba_apps.training import AtomicCheckpointIO, NonFiniteLossError, make_trainer
from mamba_apps.training.guard import _Watch


def checkpoint(path: Path) -> dict[str, Any]:
    return AtomicCheckpointIO().load_checkpoint(path)


def nothing_bad_on_disk(run_dir: Path) -> None:
    found = list(run_dir.glob("*.ckpt"))
    assert found
    for path in found:
        for name, value in checkpoint(path)["state_dict"].items():
            assert torch.isfinite(value).all(), f"{path.name}: {name}"


class Run:
    """The small run, with its weights noted after every step and something done to its loss."""

    def __init__(self, runs: ModuleType, run_dir: Path, spoil: Callable[[int, Any], Any], **options: Any) -> None:
        self.run_dir = run_dir
        self.trainer, self.task, self.train_loader, self.val_loader = runs.build(run_dir, **options)
        self.weights: list[dict[str, torch.Tensor]] = []
        original = self.task.training_step

        def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == len(self.weights):
                parameters = self.task.named_parameters()
                self.weights.append({name: value.detach().clone() for name, value in parameters})
            loss = original(batch, batch_idx)
            return spoil(self.trainer.fit_loop.total_batch_idx, loss)

        self.task.training_step = training_step

    def fit(self) -> str:
        """Train, expecting the guard's error, and return it."""
        with pytest.raises(NonFiniteLossError) as raised:
            self.trainer.fit(self.task, self.train_loader, self.val_loader)
        assert raised.value.remedy
        return str(raised.value)

    def assert_kept(self, step: int) -> None:
        """Check that last_good.ckpt holds the weights with which a step began."""
        saved = checkpoint(self.run_dir / "last_good.ckpt")
        assert saved["global_step"] == step
        for name, value in self.weights[step].items():
            assert torch.equal(saved["state_dict"][name], value), name
        nothing_bad_on_disk(self.run_dir)


def multiply(at: int, factor: float) -> Callable[[int, torch.Tensor], torch.Tensor]:
    return lambda batch, loss: loss * factor if batch == at else loss


@pytest.mark.parametrize(("factor", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
@pytest.mark.parametrize("step", [0, 7, 13])
def test_bad_loss_stops_and_keeps_the_weights_before_it(
    tmp_path: Path, runs: ModuleType, no_fsync: None, factor: float, shown: str, step: int
) -> None:
    run = Run(runs, tmp_path, multiply(step, factor))
    message = run.fit()
    assert f"the loss is {shown} at step {step} (epoch {step // 11}, batch {step % 11})" in message
    assert str(tmp_path / "last_good.ckpt") in message
    run.assert_kept(step)


def test_last_good_can_be_continued(tmp_path: Path, runs: ModuleType, train: Any) -> None:
    Run(runs, tmp_path / "bad", multiply(13, float("nan"))).fit()
    trainer, task, train_loader, val_loader = runs.build(tmp_path / "again")
    trainer.fit(task, train_loader, val_loader, ckpt_path=tmp_path / "bad" / "last_good.ckpt")
    ended = runs.fingerprint(task, trainer)
    assert ended["steps"] == 40
    assert torch.isfinite(torch.tensor(float.fromhex(ended["loss"])))


def test_bad_batch_inside_an_accumulated_step_is_named(tmp_path: Path, runs: ModuleType, no_fsync: None) -> None:
    """Steps are taken after batches 3, 6, 9, 11 of each epoch."""
    run = Run(runs, tmp_path, multiply(17, float("nan")), accumulate_grad_batches=3, max_steps=20)
    assert "at step 6 (epoch 1, batch 6)" in run.fit()
    run.assert_kept(6)


def test_infinite_gradient_of_a_finite_loss_stops(tmp_path: Path, runs: ModuleType, no_fsync: None) -> None:
    def spoil(batch: int, loss: torch.Tensor) -> torch.Tensor:
        # the root has an infinite slope at 0, and value 0
        return loss + (loss - loss).abs().sqrt() if batch == 9 else loss

    run = Run(runs, tmp_path, spoil)
    assert "the norm of the gradients is nan at step 9 (epoch 0, batch 9)" in run.fit()
    run.assert_kept(9)


def test_bad_input_is_named(tmp_path: Path, runs: ModuleType, no_fsync: None) -> None:
    run = Run(runs, tmp_path, lambda batch, loss: loss)
    run.train_loader.dataset.x[40] = float("nan")
    message = run.fit()
    assert "and so is input 0 of that batch" in message
    assert message.endswith("mend that input")


def test_weights_spoilt_in_memory_are_not_kept(tmp_path: Path, runs: ModuleType, no_fsync: None) -> None:
    """Batch norm takes a bad input into its running mean before the loss is known."""
    run = Run(runs, tmp_path, lambda batch, loss: loss, save_every_steps=4)
    original = run.task.training_step
    run.task.training_step = lambda batch, batch_idx: original(
        (batch[0] * float("nan"), batch[1]) if run.trainer.global_step == 10 else batch, batch_idx
    )
    run.fit()
    assert not torch.isfinite(run.task.net[1].running_mean).all()
    run.assert_kept(8)


def test_bad_monitored_metric_stops(tmp_path: Path, runs: ModuleType, no_fsync: None) -> None:
    run = Run(runs, tmp_path, lambda batch, loss: loss)
    run.task.validation_step = lambda batch, batch_idx: run.task.log("val_loss", torch.tensor(float("nan")))
    assert "the monitored metric val_loss is nan after step 11" in run.fit()
    nothing_bad_on_disk(tmp_path)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard look later, as it does on a GPU."""
    from mamba_apps.training.guard import NonFiniteGuard

    original = NonFiniteGuard.on_train_start

    def on_train_start(self: NonFiniteGuard, trainer: Any, pl_module: Any) -> None:
        original(self, trainer, pl_module)
        self._watch = _Watch(torch.device("cpu"))

    monkeypatch.setattr(NonFiniteGuard, "on_train_start", on_train_start)


@pytest.mark.parametrize("every", [1, 4, None])
def test_checks_that_are_read_later_never_save_bad_weights(
    tmp_path: Path, runs: ModuleType, no_fsync: None, watched: None, every: int | None
) -> None:
    run = Run(runs, tmp_path, multiply(14, float("nan")), save_every_steps=every)
    message = run.fit()
    assert "the loss is not finite at step 14 (epoch 1, batch 3)" in message
    # without asking for it, the best of epoch 0 is what was saved last
    run.assert_kept({1: 14, 4: 12, None: 11}[every])


def test_checks_that_are_read_later_see_gradients_too(
    tmp_path: Path, runs: ModuleType, no_fsync: None, watched: None
) -> None:
    def spoil(batch: int, loss: torch.Tensor) -> torch.Tensor:
        return loss + (loss - loss).abs().sqrt() if batch == 9 else loss

    message = Run(runs, tmp_path, spoil).fit()
    assert "the norm of the gradients is not finite at step 9 (epoch 0, batch 9)" in message
    nothing_bad_on_disk(tmp_path)


def test_nan_weights_are_never_written(tmp_path: Path) -> None:
    target = tmp_path / "x.ckpt"
    state = {"fine": torch.zeros(2), "mask": torch.tensor([-float("inf")]), "count": torch.tensor(3)}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, target)
    with pytest.raises(NonFiniteLossError, match=r"net\.bias holds NaN"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": state | {"net.bias": torch.tensor([1, torch.nan])}}, target)
    assert checkpoint(target)["state_dict"].keys() == state.keys()


def test_guard_in_a_plain_trainer(tmp_path: Path, runs: ModuleType) -> None:
    """A run that diverges by itself: the learning rate is absurd."""
    trainer = make_trainer(run_dir=tmp_path, max_steps=400, progress=False, accelerator="cpu")
    task = runs.Task()
    task.net = nn.Sequential(nn.Linear(6, 1))
    task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=1e4)
    with pytest.raises(NonFiniteLossError, match="lower the learning rate"):
        trainer.fit(task, runs.train_loader("resumable"), runs.val_loader())
    nothing_bad_on_disk(tmp_path)
    assert (tmp_path / "last_good.ckpt").is_file()
