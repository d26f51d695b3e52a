"""Train within a budget of steps and keep no folder: the weights that were best on the validation part stay."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

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
    seed: int,
    progress: bool,
    patience: int | None = None,
    validated: bool = True,
    graph: bool = False,
) -> tuple[Task, dict[str, float]]:
    """Train a task that logs "val/mae", with twenty validations; or one without, whose last weights stay.

    Args:
        make_task: Makes the task; called after the randomness was seeded.
        data: Its data.
        max_steps: Most optimiser steps.
        accelerator: As in Lightning.
        seed: Of all randomness.
        progress: Whether to draw a progress bar on a terminal, and to say now and then elsewhere how far a training is.
        patience: Stop after so many validations without a better one.
        validated: Whether the data has a validation part.
        graph: As in `make_trainer`.

    Returns:
        The task with its best weights, and their scores on the validation part, if there is one.

    Raises:
        UserError: An option is out of range.
    """
    checks: dict[str, Any] = {}
    if validated:
        checks = {"monitor": "val/mae", "patience": patience, "check_val_every_n_epoch": None}
        checks["val_check_interval"] = max(max_steps // _CHECKS, 10)
    with tempfile.TemporaryDirectory(prefix="mamba-apps-") as folder:
        trainer = make_trainer(
            run_dir=folder,
            max_steps=max_steps,
            accelerator=accelerator,
            seed=seed,
            graph=graph,
            progress=progress,
            logger=False,
            gradient_clip_val=1.0,
            **checks,
        )
        task = make_task()
        trainer.fit(task, datamodule=data)
        if not validated:
            return task, {}
        best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
        found = trainer.validate(task, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)[0]
    return task, {name: float(value) for name, value in found.items()}
