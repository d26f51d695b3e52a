"""How far a run is, in lines on stderr: what a log of a batch job or a test of minutes shows in place of a bar."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from mamba_apps.training.progress import batches, planned_steps
from mamba_datasets.progress import clock

if TYPE_CHECKING:
    import lightning.pytorch as pl


class ProgressLines(Callback):
    """Says now and then how far a training, validation, test or prediction is; a short one says nothing.

    Args:
        every_seconds: The least time between two lines, and before the first.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self._every_seconds = every_seconds
        self._began = self._said = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin to count time."""
        self._began = self._said = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Say which step a training is at, with the metrics that a bar would show."""
        if self._due(trainer):
            planned = planned_steps(trainer)
            total = f" of {planned:,}" if planned is not None else ""
            shown = trainer.progress_bar_metrics.items()
            metrics = [f"{name} {value:.4g}" for name, value in shown if isinstance(value, float | int)]
            self._say("training", f"step {trainer.global_step:,}{total}", *metrics)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Say how far a validation is."""
        self._count(trainer, "validating", batch_idx, trainer.num_val_batches)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Say how far a test is."""
        self._count(trainer, "testing", batch_idx, trainer.num_test_batches)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Say how far a prediction is."""
        self._count(trainer, "predicting", batch_idx, trainer.num_predict_batches)

    def _count(self, trainer: pl.Trainer, what: str, place: int, counts: list[int | float]) -> None:
        total = batches(counts)
        if place + 1 != total and self._due(trainer):
            self._say(what, f"batch {place + 1:,}" + (f" of {total:,.0f}" if total is not None else ""))

    def _due(self, trainer: pl.Trainer) -> bool:
        return time.monotonic() - self._said >= self._every_seconds and trainer.is_global_zero

    def _say(self, what: str, *parts: str) -> None:
        self._said = time.monotonic()
        print(f"{what}: {' · '.join([*parts, clock(self._said - self._began)])}", file=sys.stderr, flush=True)
