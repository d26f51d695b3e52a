"""Train within a budget of steps and keep no folder: the weights that were best on the validation part stay."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TypeVar

import lightning.pytorch as pl

from mamba_apps.training.trainer import make_trainer

_CHECKS = 20

Task = TypeVar("Task", bound=pl.LightningModule)


def fit_best(
    make_task: Callable[[], Task],
    data: pl.LightningDataModule,
    *,
    max_steps: int,
    accelerator: str,
    patience: int,
    seed: int,
    progress: bool,
) -> tuple[Task, dict[str, float]]:
    """Train a task that logs "val/mae", with twenty validations.

    Args:
        make_task: Makes the task; called after the randomness was seeded.
        data: Its data, with a validation part.
        max_steps: Most optimiser steps.
        accelerator: As in Lightning.
        patience: Stop after so many validations without a better one.
        seed: Of all randomness.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        The task with its best weights, and their scores on the validation part.

    Raises:
        UserError: An option is out of range.
    """
    with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
        trainer = make_trainer(
            run_dir=folder,
            max_steps=max_steps,
            accelerator=accelerator,
            monitor="val/mae",
            patience=patience,
            seed=seed,
            progress=progress,
            logger=False,
            gradient_clip_val=1.0,
            check_val_every_n_epoch=None,
            val_check_interval=max(max_steps // _CHECKS, 10),
        )
        task = make_task()
        trainer.fit(task, datamodule=data)
        best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
        found = trainer.validate(task, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)[0]
    return task, {name: float(value) for name, value in found.items()}
