"""What a run keeps on disk: last.ckpt, the one before it, the best one, and when they are written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from mamba_apps.errors import UserError
from mamba_apps.training import accumulators
from mamba_apps.training.checkpoint import BEST_NAME, LAST_GOOD_NAME, LAST_NAME, PREVIOUS_NAME, is_good, keep_as
from mamba_apps.training.guard import NonFiniteGuard, NonFiniteLossError, is_clean
from mamba_apps.training.interrupt import Interrupt, StopRequestedError
from mamba_apps.training.metrics_file import MetricsFile
from mamba_apps.training.position import Position, counts, of_all_processes, of_this_process, position_of, rewind
from mamba_apps.training.seeding import seed_everything

if TYPE_CHECKING:
    import lightning.pytorch as pl

# saving may take at most one part in this many of a run's time, unless asked for by steps
_SAVING_SHARE = 20
# several processes agree on saving and stopping at every this many safe points
_AGREE_EVERY = 10


class RunCheckpoints(Checkpoint):
    """Save a run at its safe points so that it can be resumed as if it had never been interrupted.

    Args:
        run_dir: Where the checkpoints go.
        monitor: Name of the logged metric that decides which is best; None keeps no best.
        mode: "min" or "max": which value of it is better.
        every_steps: Save `last.ckpt` every this many optimizer steps ...
        every_seconds: ... and at the first safe point this long after the last save.
        seed: Seed of the run.

    Attributes:
        guard: The callback that stops the run at a non-finite loss; it belongs before all others.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        monitor: str | None = None,
        mode: str = "min",
        every_steps: int | None = None,
        every_seconds: float = 120.0,
        seed: int = 0,
    ) -> None:
        self.run_dir = run_dir
        self.monitor = monitor
        self.mode = mode
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.seed = seed
        self.guard = NonFiniteGuard(self.keep_last_good)
        self.best_model_score: torch.Tensor | None = None
        self.best_model_path = ""
        self.last_model_path = ""
        # where a loaded checkpoint was written; None once the run has been put there
        self.position: Position | None = None
        # the random states with which the running epoch made its iterator and drew its first batch
        self.epoch_random: dict[str, Any] = {}
        self._interrupt = Interrupt()
        self._loaded_seed = seed
        self._writing: list[Position] | None = None
        self._candidate: torch.Tensor | None = None
        self._validated = False
        self._last_is_good = False
        self._saved_at = time.monotonic()
        self._safe_points = 0
        self._saved_steps = 0
        self._saved_point: tuple[int, ...] = ()
        self._seconds = every_seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint remembers; the position only where it is written at a safe point."""
        return {
            "seed": self.seed,
            "monitor": self.monitor,
            "mode": self.mode,
            "best_model_score": self.best_model_score,
            "positions": self._writing,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint remembers."""
        self._loaded_seed = state_dict["seed"]
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best_model_score = state_dict["best_model_score"]
            if self.best_model_score is not None and (self.run_dir / BEST_NAME).is_file():
                self.best_model_path = str(self.run_dir / BEST_NAME)
        positions = state_dict["positions"]
        if positions is None:
            return
        self.position = of_this_process(positions)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed a new run; let a run that had stopped early stay stopped."""
        if trainer.ckpt_path is None:
            self.position = None
            seed_everything(self.seed)
            return
        if self.position is not None and self._loaded_seed != self.seed:
            raise UserError(
                f"{trainer.ckpt_path} belongs to a run with seed {self._loaded_seed}, this one has seed {self.seed}",
                f"resume with seed {self._loaded_seed} or start a new run in another folder",
            )
        for callback in trainer.early_stopping_callbacks:
            if callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Ctrl-C wait for the next safe point."""
        self._interrupt.install()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        self._interrupt.uninstall()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back; `last.ckpt` stays as it was, a state that the unbroken run passes through."""
        self._interrupt.uninstall()

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave a validation when Ctrl-C was pressed."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if (
            fitting
            and trainer.world_size == 1
            and self._interrupt.requested
            and not trainer.fit_loop._should_accumulate()
        ):
            raise StopRequestedError

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether these weights are the best so far."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = True
            self._judge(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether these weights are the best so far, where the metric is one of training."""
        if self.monitor is None:
            return
        known = self.monitor in trainer.callback_metrics
        if not known and (self._validated or not trainer.enable_validation):
            raise not_logged(self.monitor, trainer.callback_metrics)
        if not self._validated:
            self._judge(trainer)
        self._validated = False

    def start(self, trainer: pl.Trainer) -> Position | None:
        """Begin the run: save a new one's first state, or hand over where a resumed one goes on.

        Args:
            trainer: The trainer, about to train.

        Returns:
            The position at which the checkpoint was written; None for a new run and for a checkpoint that was not
            written at a safe point.
        """
        position, self.position = self.position, None
        # a step whose validation is pending is done, but not yet counted as such
        logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        logged += position is not None and position["validation_pending"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.start(logged)
        self._saved_at = time.monotonic()
        self._saved_steps = trainer.global_step
        if trainer.ckpt_path is None:
            self.save(trainer, mid_epoch=False)
        else:
            self._last_is_good = Path(trainer.ckpt_path).resolve() == (self.run_dir / LAST_NAME).resolve()
            self._saved_point = counts(trainer)
        return position

    def safe_point(self, trainer: pl.Trainer, *, mid_epoch: bool, force: bool = False) -> None:
        """Save if it is time to, and stop if Ctrl-C was pressed.

        Args:
            trainer: The trainer, between two batches or two epochs.
            mid_epoch: Between two batches.
            force: Save in any case, unless this state has been saved.

        Raises:
            StopRequestedError: Ctrl-C was pressed; the state is saved.
        """
        every = self.every_steps
        wanted = force or self._candidate is not None
        wanted = wanted or (every is not None and trainer.global_step // every > self._saved_steps // every)
        # clocks and signals differ between processes, which have to agree; that costs a message
        self._safe_points += 1
        stop = False
        if trainer.world_size == 1 or self._safe_points % _AGREE_EVERY == 0:
            stop = _any(trainer, self._interrupt.requested)
            wanted = wanted or stop or _any(trainer, time.monotonic() - self._saved_at >= self._seconds)
        if wanted:
            self.save(trainer, mid_epoch=mid_epoch)
        if stop:
            raise StopRequestedError

    def save(
        self,
        trainer: pl.Trainer,
        *,
        mid_epoch: bool,
        validation_pending: bool = False,
        random: dict[str, Any] | None = None,
    ) -> None:
        """Write `last.ckpt`, and make it the best one too if it is.

        Args:
            trainer: The trainer, at a safe point.
            mid_epoch: Between two batches rather than two epochs.
            validation_pending: The validation after the last batch has still to be run.
            random: The random state to resume with; None is the present one.

        Raises:
            UserError: The disk is full or the folder read-only; the checkpoints there are as they were.
            NonFiniteLossError: Something non-finite was found; nothing is written.
        """
        point = counts(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if point == self._saved_point and self._candidate is None and not validation_pending:
            return
        self.guard.check(trainer)
        began = time.monotonic()
        last = self.run_dir / LAST_NAME
        if self._last_is_good and trainer.is_global_zero:
            keep_as(last, PREVIOUS_NAME)
        if self._candidate is not None:
            self.best_model_score = self._candidate
        self._writing = of_all_processes(
            position_of(
                trainer,
                mid_epoch=mid_epoch,
                epoch_random=self.epoch_random,
                accumulators=accumulators.collect(trainer),
                validation_pending=validation_pending,
                random=random,
            )
        )
        try:
            trainer.save_checkpoint(last, weights_only=False)
        finally:
            self._writing = None
        self._last_is_good = True
        self.last_model_path = str(last)
        if self._candidate is not None:
            if trainer.is_global_zero:
                keep_as(last, BEST_NAME)
            self.best_model_path = str(self.run_dir / BEST_NAME)
            self._candidate = None
        self._saved_point = point
        self._saved_steps = trainer.global_step
        self._saved_at = time.monotonic()
        self._seconds = max(self.every_seconds, _SAVING_SHARE * (self._saved_at - began))

    def keep_last_good(self, trainer: pl.Trainer, in_memory: bool) -> Path | None:
        """Keep the last good weights as `last_good.ckpt`.

        Args:
            trainer: The trainer, inside a bad batch.
            in_memory: The weights in memory are from before that batch.

        Returns:
            The checkpoint, or None where nothing good exists.
        """
        path = self.run_dir / LAST_GOOD_NAME
        if in_memory and is_clean(trainer.strategy.lightning_module_state_dict()):
            self._writing = [position_of(trainer, mid_epoch=True, epoch_random=self.epoch_random, accumulators={})]
            try:
                checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            finally:
                self._writing = None
            rewind(checkpoint["loops"]["fit_loop"])
            trainer.strategy.save_checkpoint(checkpoint, path)
            return path
        last = self.run_dir / LAST_NAME
        return keep_as(last, LAST_GOOD_NAME) if trainer.is_global_zero and is_good(last) else None

    def _judge(self, trainer: pl.Trainer) -> None:
        """Note the monitored metric if it is the best so far."""
        score = trainer.callback_metrics.get(self.monitor) if self.monitor is not None else None
        if score is None:
            return
        score = score.detach().to("cpu", torch.float64).reshape(())
        if trainer.world_size > 1:
            score = trainer.strategy.broadcast(score)  # a metric logged without sync_dist differs between processes
        if not torch.isfinite(score):
            raise NonFiniteLossError(
                f"the monitored metric {self.monitor} is {score.item()} after step {trainer.global_step}",
                f"the weights of {self.run_dir / LAST_NAME} are from before it; lower the learning rate, "
                "or look for a target that is not finite or a validation set without targets",
            )
        best = self.best_model_score
        if best is None or (score < best if self.mode == "min" else score > best):
            self._candidate = score


def _any(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something holds in any process."""
    return trainer.strategy.reduce_boolean_decision(here, all=False) if trainer.world_size > 1 else here


def not_logged(monitor: str, logged: Iterable[str]) -> UserError:
    """Return the error that a monitored metric is not among those that were logged."""
    names = ", ".join(sorted(logged)) or "none"
    return UserError(
        f"the monitored metric {monitor!r} was not logged (logged: {names})",
        "monitor one of those or log it with self.log",
    )
