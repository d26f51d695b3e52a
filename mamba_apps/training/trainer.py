"""One way to make a Trainer, for the Python API and the command alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from mamba_apps.errors import UserError
from mamba_apps.training.chatter import quiet
from mamba_apps.training.checkpoint import AtomicCheckpointIO, resume_path
from mamba_apps.training.files import clean_stale, make_directory
from mamba_apps.training.graph import GraphedTraining
from mamba_apps.training.interrupt import StopRequestedError
from mamba_apps.training.loops import SafeEpochLoop, SafeFitLoop
from mamba_apps.training.metrics_file import MetricsFile
from mamba_apps.training.progress import RunProgress
from mamba_apps.training.progress_lines import ProgressLines
from mamba_apps.training.refusals import (
    FSDP,
    NOT_TAKEN,
    check_budget,
    check_counts,
    check_processes,
    check_strategy,
    check_watching,
    not_taken,
    of_another_run,
)
from mamba_apps.training.run_checkpoints import RunCheckpoints
from mamba_apps.training.seeding import seed_everything
from mamba_apps.training.tf32 import TF32Products

# what a shell reports for a process ended by SIGTERM
_TERMINATED = 143
# no rehearsal of the validation, no table of layers; metrics often enough for short runs
_DEFAULTS = {"num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False}


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
    save_every_steps: int | None = None,
    save_every_seconds: float = 120.0,
    graph: bool = False,
    tf32: bool = False,
    callbacks: list[Callback] | None = None,
    test_dir: str | Path | None = None,
    **lightning_options: Any,
) -> pl.Trainer:
    """Make a Lightning Trainer whose runs survive: atomic checkpoints, exact resume, a stop at a non-finite loss.

    In `run_dir` it keeps `last.ckpt`, `previous.ckpt`, `best.ckpt` (with `monitor`), `last_good.ckpt` (after a
    non-finite loss) and `metrics.csv`. Exactly one budget must be given. The weights at its end are always validated.

    Args:
        run_dir: Folder of the run; created where missing.
        max_epochs: Budget in passes over the training data, at least 1.
        max_steps: Budget in optimizer steps, at least 1.
        max_seconds: Budget in seconds of training and validation, above 0.
        accelerator: As in Lightning: "auto", "cpu", "gpu", ...
        devices: As in Lightning.
        precision: As in Lightning: "32-true", "bf16-mixed", ...
        monitor: Name of the logged metric that decides which checkpoint is best and when to stop early.
        mode: "min" or "max": which value of it is better.
        patience: Stop after this many validations without a better one.
        seed: Seeds the run when it is made and again when it begins to train.
        progress: Draw a progress bar on stderr; where that is no terminal, say every half minute how far the run is.
        resume: Let `fit` continue from `resume_path(run_dir)`; a run that has no checkpoint yet begins anew.
        save_every_steps: Save `last.ckpt` every this many optimizer steps ...
        save_every_seconds: ... and this long after the last save, but never for more than a twentieth of the time.
        graph: On a GPU, capture the passes of the task's network once and replay them: small models train several times
            faster. Batches of other shapes than the first run without.
        tf32: On a GPU, multiply float32 matrices in TF32, as convolutions are anyway: what bf16 autocast does not reach
            takes less time, with about three decimal digits a factor.
        callbacks: Further callbacks.
        test_dir: Folder for the tables and pictures that some tasks write when they are tested; None is `run_dir`.
        **lightning_options: Further options of `lightning.Trainer` (gradient_clip_val, deterministic,
            accumulate_grad_batches, val_check_interval, ...); `logger=False` writes no metrics.csv; `strategy` may be
            "ddp", or "fsdp" to shard the model (see `FullyShardedStrategy`).

    Returns:
        The trainer. Its `fit` raises KeyboardInterrupt on Ctrl-C, after saving.

    Raises:
        UserError: An option is out of range or not supported, or the folder cannot be written.
    """
    quiet()
    check_budget(max_epochs=max_epochs, max_steps=max_steps, max_seconds=max_seconds)
    check_watching(monitor, mode, patience, save_every_steps)
    check_counts(lightning_options)
    check_strategy(lightning_options.get("strategy"), precision, graph)
    if lightning_options.get("strategy") == FSDP:
        from mamba_apps.training.fsdp import FullyShardedStrategy

        lightning_options = {**lightning_options, "strategy": FullyShardedStrategy()}
    run_dir = Path(run_dir)
    make_directory(run_dir, "run folder")
    seed_everything(seed)
    checkpoints = RunCheckpoints(
        run_dir,
        monitor=monitor,
        mode=mode,
        every_steps=save_every_steps,
        every_seconds=save_every_seconds,
        seed=seed,
    )
    # the guard comes first, so that nothing else sees a non-finite loss
    all_callbacks: list[Callback] = [checkpoints.guard, *(callbacks or []), checkpoints]
    if graph:
        all_callbacks.append(GraphedTraining())
    if tf32:
        all_callbacks.append(TF32Products())
    if monitor is not None and patience is not None:
        all_callbacks.append(
            EarlyStopping(monitor, mode=mode, patience=patience, min_delta=0.0, strict=False, check_finite=False)
        )
    draws = any(isinstance(callback, ProgressBar) for callback in all_callbacks)
    if progress and not draws:
        draws = sys.stderr.isatty()
        all_callbacks.append(RunProgress(max_seconds) if draws else ProgressLines())
    _fill_in(lightning_options, run_dir)
    try:
        trainer = RunTrainer(
            checkpoints=checkpoints,
            resume=resume,
            test_dir=run_dir if test_dir is None else Path(test_dir),
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            max_epochs=-1 if max_epochs is None else max_epochs,
            max_steps=-1 if max_steps is None else max_steps,
            max_time=None if max_seconds is None else {"seconds": max_seconds},
            callbacks=all_callbacks,
            default_root_dir=run_dir,
            enable_progress_bar=draws,
            **lightning_options,
        )
    except NOT_TAKEN as error:
        raise not_taken(error) from error
    check_processes(trainer, graph)
    return trainer


class RunTrainer(pl.Trainer):
    """A Trainer that saves at safe points and resumes exactly; made by `make_trainer`.

    Args:
        checkpoints: Saves the run.
        resume: Let `fit` continue from the run folder's checkpoint.
        test_dir: Folder for what a task writes when it is tested.
        **options: Options of `lightning.Trainer`.
    """

    def __init__(self, *, checkpoints: RunCheckpoints, resume: bool, test_dir: Path, **options: Any) -> None:
        super().__init__(**options)
        self.run_checkpoints = checkpoints
        self.resume, self.test_dir = resume, test_dir
        before = self.fit_loop
        self.fit_loop = SafeFitLoop(self, checkpoints, before.min_epochs, before.max_epochs)
        self.fit_loop.epoch_loop = SafeEpochLoop(self, checkpoints, before.min_steps, before.max_steps)

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train the model, continuing the run of the folder when the trainer was made with `resume=True`.

        Args:
            model: The task to train.
            train_dataloaders: As in Lightning.
            val_dataloaders: As in Lightning.
            datamodule: As in Lightning.
            ckpt_path: A checkpoint to continue from instead.
            weights_only: Checkpoints are always loaded with weights_only=True.

        Raises:
            UserError: The folder already holds a run, or a checkpoint is damaged or of another model.
            NonFiniteLossError: A loss, gradient or monitored metric was not finite.
            KeyboardInterrupt: Ctrl-C was pressed; `last.ckpt` was saved.
        """
        run_dir = self.run_checkpoints.run_dir
        if ckpt_path is None:
            ckpt_path = self._checkpoint_to_resume(run_dir)
        try:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        except StopRequestedError:
            raise KeyboardInterrupt from None
        except SIGTERMException:
            raise SystemExit(_TERMINATED) from None
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit code of 1 of it
                raise KeyboardInterrupt from None
            raise
        except (MisconfigurationException, RuntimeError, ValueError, KeyError) as error:
            refusal = None if ckpt_path is None else of_another_run(error, ckpt_path)
            if refusal is None:
                raise
            raise refusal from error

    def _checkpoint_to_resume(self, run_dir: Path) -> Path | None:
        if self.resume:
            path = resume_path(run_dir)
            if path is None:
                print(f"{run_dir} holds no checkpoint yet: starting from the beginning", file=sys.stderr)
            return path
        clean_stale(run_dir)
        if any(run_dir.glob("*.ckpt")) and not self.run_checkpoints.last_model_path:
            raise UserError(
                f"{run_dir} already holds a run's checkpoints",
                "continue it (resume=True, --resume) or choose another folder",
            )
        return None


def _fill_in(options: dict[str, Any], run_dir: Path) -> None:
    """Put our defaults in place of Lightning's; None counts as not given, as a command line gives it."""
    plugins = options.get("plugins") or []
    options["plugins"] = [*(plugins if isinstance(plugins, list | tuple) else [plugins]), AtomicCheckpointIO()]
    if options.get("logger") in (None, True):
        options["logger"] = MetricsFile(run_dir)
    for name, value in _DEFAULTS.items():
        if options.get(name) is None:
            options[name] = value
