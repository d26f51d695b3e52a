"""One progress bar on stderr for a whole run, over its epochs and validations."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import lightning.pytorch as pl

_EVERY_SECONDS = 0.1
_BAR_WIDTH = 20
# what a line holds besides the metrics, which are left out rather than the rest
_OTHERS_WIDTH = 50


class RunProgress(ProgressBar):
    """A bar that fills with the run's budget: optimizer steps or seconds.

    Args:
        max_seconds: The budget in seconds, if it is one.
        console: Where to draw; None is stderr.
    """

    def __init__(self, max_seconds: float | None = None, console: Console | None = None) -> None:
        super().__init__()
        self._max_seconds = max_seconds
        self._console = console
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._began = 0.0
        self._drawn = 0.0

    def disable(self) -> None:
        """Draw nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(*args, **kwargs)
        else:
            super().print(*args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar of a training."""
        self._begin("training", self._budget(trainer))
        self._draw(trainer, "training", force=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._draw(trainer, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the run is validating, or begin the bar of a validation of its own."""
        if trainer.state.fn == "fit":
            self._draw(trainer, "validating", force=True)
        else:
            self._begin("validating", batches(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of a validation of its own."""
        if trainer.state.fn != "fit":
            self._advance()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to training, or end the bar of a validation of its own."""
        if trainer.state.fn == "fit":
            self._draw(trainer, "training", force=True)
        else:
            self._end()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar of a test."""
        self._begin("testing", batches(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar of a test."""
        self._advance()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar of a prediction."""
        self._begin("predicting", batches(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar of a prediction."""
        self._advance()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fill the bar as far as the run came, and end it."""
        self._draw(trainer, "trained", force=True)
        self._end()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """End the bar, so that the error is not drawn over."""
        self._end()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """End the bar."""
        self._end()

    def _budget(self, trainer: pl.Trainer) -> float | None:
        return planned_steps(trainer) if self._max_seconds is None else self._max_seconds

    def _begin(self, what: str, total: float | None) -> None:
        self._end()
        if not self._enabled:
            return
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(_BAR_WIDTH),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}"),
            console=self._console or Console(stderr=True),
        )
        self._task = self._progress.add_task(what, total=total, done="", metrics="")
        self._progress.start()

    def _draw(self, trainer: pl.Trainer, what: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or self._task is None or (not force and now - self._drawn < _EVERY_SECONDS):
            return
        self._drawn = now
        done = now - self._began if self._max_seconds is not None else trainer.global_step
        shown = trainer.progress_bar_metrics.items()
        metrics = [f"{name} {value:.4g}" for name, value in shown if isinstance(value, float | int)]
        while len("  ".join(metrics)) > max(0, self._progress.console.width - _OTHERS_WIDTH):
            metrics.pop()
        self._progress.update(
            self._task,
            description=what,
            completed=done,
            done=f"step {trainer.global_step}",
            metrics="  ".join(metrics),
        )

    def _advance(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._task = None


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Return the optimizer steps of a training's budget; None where only its end will tell."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    if math.isinf(trainer.num_training_batches) or (trainer.max_epochs or 0) < 1:
        return None
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return steps * int(trainer.max_epochs or 1)


def batches(counts: list[int | float] | int | float) -> float | None:
    """Return the number of batches of all of a loop's data; None where it is not known."""
    total = float(sum(counts) if isinstance(counts, list) else counts)
    return None if math.isinf(total) else total
