"""One way to make a Trainer, for the Python API and the command alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mamba_apps.errors import UserError
from mamba_apps.training.checkpoint import AtomicCheckpointIO, resume_path
from mamba_apps.training.files import make_directory
from mamba_apps.training.guard import NonFiniteGuard
from mamba_apps.training.quiet import quiet
from mamba_apps.training.seeding import seed_everything


def make_trainer(
    *,
    run_dir: str | Path,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    precision: str = "32-true",
    monitor: str | None = None,
    mode: str = "min",
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
    **lightning_options: Any,
) -> pl.Trainer:
    """Make a Trainer."""
    quiet()
    budgets = {"max_epochs": max_epochs, "max_steps": max_steps, "max_seconds": max_seconds}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            f"{len(given)} budgets are given ({', '.join(given) or 'none'})",
            f"give exactly one of {', '.join(budgets)}",
        )
    run_dir = Path(run_dir)
    make_directory(run_dir, "run folder")
    seed_everything(seed)
    extra: list[Callback] = [NonFiniteGuard()]
    if patience is not None:
        extra.append(EarlyStopping(monitor=monitor, mode=mode, patience=patience))
    extra.append(
        ModelCheckpoint(
            dirpath=run_dir, filename="best", monitor=monitor, mode=mode, save_last=True, enable_version_counter=False
        )
    )
    options: dict[str, Any] = {
        "logger": CSVLogger(run_dir, name="", version=""),
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        **lightning_options,
    }
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            max_epochs=max_epochs if max_epochs is not None else -1,
            max_steps=max_steps if max_steps is not None else -1,
            max_time={"seconds": max_seconds} if max_seconds is not None else None,
            callbacks=[*extra, *(callbacks or ())],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run_dir,
            enable_progress_bar=progress,
            **options,
        )
    except MisconfigurationException as error:
        raise UserError(str(error), "check the trainer's options") from error
    if resume and (path := resume_path(run_dir)) is not None:
        trainer.ckpt_path = path
    return trainer
