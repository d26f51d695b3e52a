"""A Lightning recipe as a candidate: trained by the project's trainer, measured by its own test step."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.training.seeding import seed_everything
from mamba_apps.training.trainer import make_trainer
from mamba_recipes.build import Built, build
from mamba_recipes.compare.budget import Budget

_WARM_STEPS = 3


class LightningCandidate:
    """A recipe's model, trained by Lightning.

    Args:
        config: The recipe's blocks with this candidate's overrides set.
        source: Where they come from, for errors.
        scratch: A folder for checkpoints; what lies there is removed with the candidate.
        on_progress: Called after each training step with the fraction of the budget that is spent.
        drawn: Folder for the tables and pictures that some tasks write when they are tested; None keeps none.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        source: str,
        scratch: str,
        on_progress: Callable[[float], None] | None = None,
        drawn: str | None = None,
    ) -> None:
        self._config = dict(config)
        self._source, self._drawn = source, drawn
        self._on_progress = on_progress or (lambda fraction: None)
        self._folder = tempfile.TemporaryDirectory(dir=scratch)
        self.parameters = 0
        self.samples_seen = 0
        self.train_seconds = 0.0
        self.step_seconds = 0.0

    def rehearse(self, data: Any, seed: int) -> None:
        """Take a step of training, validation and test on a copy, so that compiling kernels is charged to nobody."""
        copy = self._build(seed)
        trainer = self._trainer(copy, seed, [], "rehearsal", fast_dev_run=1)
        trainer.fit(copy.model, datamodule=data)
        trainer.test(copy.model, datamodule=data, verbose=False)

    def fit(self, data: Any, budget: Budget, seed: int) -> None:
        """Train within ``budget``."""
        built = self._build(seed)
        meter = _Meter(budget, self._on_progress)
        self._fitted = self._trainer(built, seed, [meter], "fit", test_dir=self._drawn, **budget.trainer_options())
        self._model, self._data = built.model, data
        start = time.perf_counter()
        self._fitted.fit(built.model, datamodule=data)
        self.train_seconds = time.perf_counter() - start
        self.samples_seen = meter.samples
        self.step_seconds = sum(meter.durations)

    def evaluate(self) -> dict[str, float]:
        """Return the test metrics of the best validated weights (of the last ones, if nothing was validated)."""
        best = getattr(self._fitted.checkpoint_callback, "best_model_path", "")
        found = self._fitted.test(
            self._model, datamodule=self._data, ckpt_path=best or None, verbose=False, weights_only=True
        )
        return {name.removeprefix("test/").removeprefix("test_"): float(value) for name, value in found[0].items()}

    def plots(self) -> Sequence[Any]:
        """Return the panels of the module's ``plots(data)``, if it draws any."""
        draw = getattr(self._model, "plots", None)
        return draw(self._data) if draw is not None else []

    def train_speed(self, data: Any, seconds: float, seed: int) -> float:
        """Train for ``seconds`` without validating and return samples per second, the median over its steps."""
        self._built = self._build(seed)
        meter = _Meter(Budget("seconds", seconds), self._on_progress)
        limits = {**Budget("seconds", seconds).trainer_options(), "limit_val_batches": 0, "monitor": None}
        self._trainer(self._built, seed, [meter], "speed", **limits).fit(self._built.model, datamodule=data)
        return meter.samples_per_second()

    def predict_speed(self, data: Any, seconds: float, seed: int) -> float:
        """Run the test step for about ``seconds`` and return samples per second, the median over its steps."""
        meter = _Meter(Budget("seconds", seconds), self._on_progress)
        trainer = self._trainer(self._built, seed, [meter], "speed", **Budget("epochs", 1).trainer_options())
        while sum(meter.durations) < seconds:
            trainer.test(self._built.model, datamodule=data, verbose=False)
        return meter.samples_per_second()

    def _build(self, seed: int) -> Built:
        built = build({**self._config, "seed_everything": seed}, self._source)
        self.parameters = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
        return built

    def _trainer(
        self, built: Built, seed: int, callbacks: list[pl.Callback], folder: str, **changes: Any
    ) -> pl.Trainer:
        options = {**built.trainer_options, **changes}
        callbacks = [*(options.pop("callbacks", None) or []), *callbacks]
        options["patience"] = None  # one budget for all: nobody stops early
        seed_everything(seed)
        run_dir = Path(self._folder.name) / folder
        trainer = make_trainer(run_dir=run_dir, seed=seed, progress=False, callbacks=callbacks, **options)
        if trainer.world_size > 1:
            raise UserError("a candidate of a comparison trains on one device", "leave out trainer.devices")
        return trainer


class _Meter(pl.Callback):
    """Time every step, without the loading before it, and tell how much of the budget is spent."""

    def __init__(self, budget: Budget, on_progress: Callable[[float], None]) -> None:
        self._budget = budget
        self._on_progress = on_progress
        self._begin = 0.0
        self._step_begin = 0.0
        self.samples = 0
        self.sizes: list[int] = []
        self.durations: list[float] = []

    def samples_per_second(self) -> float:
        """Return the median over the steps after the first few, which may compile or grow memory."""
        rates = [size / spent for size, spent in zip(self.sizes, self.durations, strict=True)]
        return statistics.median(rates[min(_WARM_STEPS, len(rates) - 1) :])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self._start(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop(pl_module, batch)
        if self._budget.kind == "steps":
            done: float = trainer.global_step
        elif self._budget.kind == "seconds":
            done = time.perf_counter() - self._begin
        else:
            done = trainer.current_epoch + (batch_idx + 1) / max(trainer.num_training_batches, 1)
        self._on_progress(min(done / self._budget.amount, 1.0))

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._start(pl_module)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._stop(pl_module, batch)
        self._on_progress(min(sum(self.durations) / self._budget.amount, 1.0))

    def _start(self, module: pl.LightningModule) -> None:
        _wait(module.device)
        self._step_begin = time.perf_counter()

    def _stop(self, module: pl.LightningModule, batch: Any) -> None:
        _wait(module.device)
        self.durations.append(time.perf_counter() - self._step_begin)
        self.sizes.append(batch_size(batch))
        self.samples += self.sizes[-1]


def _wait(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_size(batch: Any) -> int:
    """Return the length of the first tensor found in ``batch``."""
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    for part in parts:
        size = batch_size(part)
        if size:
            return size
    return 0
