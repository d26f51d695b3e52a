"""A small training run with everything that a resume can get wrong, as a module and as a program to be killed."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanAbsoluteError

from mamba_apps.training import ResumableLoader, make_trainer

SAMPLES, FEATURES, BATCH = 88, 6, 8  # 11 batches an epoch


class NoisyData(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Regression samples with random transforms from all three generators."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(SAMPLES, FEATURES, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True).sin()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[index] + 0.1 * torch.randn(FEATURES) + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002, S311
        return x, self.y[index]


class Task(pl.LightningModule):
    """Dropout, batch norm, a schedule by step and one by plateau, a logged mean, a stateful metric."""

    def __init__(self, width: int = 16, plateau: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.ReLU(), nn.Linear(width, 1)
        )
        self.train_error = MeanAbsoluteError()
        self.plateau = plateau
        self.last_loss = float("nan")
        self.report: Any = None
        self.pause = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        predicted = self.net(x)
        loss = nn.functional.mse_loss(predicted, y)
        self.train_error(predicted, y)
        self.log("train_error", self.train_error, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.last_loss = loss.item()
        if self.report is not None:
            self.report(self.global_step)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.pause)
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y) + 1e-3 * torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if not self.plateau:
            # asking for the budget makes Lightning build the training loader before the run is restored
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return [optimizer], [{"scheduler": plateau, "interval": "epoch", "monitor": "val_loss"}]


def train_loader(kind: str, seed: int = 3) -> DataLoader[Any]:
    """Return the loader of a kind: "resumable", "resumable-workers", "plain" or "plain-workers"."""
    data = NoisyData()
    workers = 2 if kind.endswith("workers") else 0
    if kind.startswith("plain"):
        return DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers)
    return ResumableLoader(data, batch_size=BATCH, seed=seed, num_workers=workers)


def val_loader() -> DataLoader[Any]:
    """Return fixed validation data."""
    data = NoisyData()
    return DataLoader(TensorDataset(data.x[:24], data.y[:24]), batch_size=BATCH)


def fingerprint(task: Task, trainer: pl.Trainer) -> dict[str, Any]:
    """Describe how a run ended, to the last bit."""

    def digest(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        if isinstance(value, dict):
            return json.dumps({str(key): digest(item) for key, item in value.items()})
        if isinstance(value, list | tuple):
            return json.dumps([digest(item) for item in value])
        return repr(value)

    stopper = trainer.early_stopping_callback
    return {
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "loss": task.last_loss.hex(),
        "weights": digest(dict(task.state_dict())),
        "optimizer": digest([optimizer.state_dict() for optimizer in task.trainer.optimizers]),
        "logged": {name: float(value).hex() for name, value in sorted(trainer.callback_metrics.items())},
        "waited": None if stopper is None else stopper.wait_count,
        "best": None
        if trainer.run_checkpoints.best_model_score is None
        else trainer.run_checkpoints.best_model_score.item(),
        "metrics": (Path(trainer.default_root_dir) / "metrics.csv").read_text(),
    }


def build(run_dir: Path, *, loader: str = "resumable", resume: bool = False, **options: Any) -> tuple[Any, ...]:
    """Return a trainer, a task and the loaders of the run."""
    budget = {} if {"max_epochs", "max_steps", "max_seconds"} & options.keys() else {"max_steps": 40}
    options = {"monitor": "val_loss", "patience": 30, "progress": False, "accelerator": "cpu", **budget, **options}
    plateau = options.pop("plateau", True)
    trainer = make_trainer(run_dir=run_dir, resume=resume, seed=1, **options)
    torch.manual_seed(17)  # the weights that the model begins with
    return trainer, Task(plateau=plateau), train_loader(loader), val_loader()


def main() -> None:
    """Train; print "step N" at every step and the fingerprint at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--loader", default="resumable")
    parser.add_argument("--save-every", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--options", type=json.loads, default={})
    arguments = parser.parse_args()
    trainer, task, train, val = build(
        arguments.run_dir,
        loader=arguments.loader,
        resume=arguments.resume,
        save_every_steps=arguments.save_every,
        **arguments.options,
    )
    task.report = lambda step: print("step", step, flush=True)
    task.pause = arguments.pause
    trainer.fit(task, train, val)
    if trainer.is_global_zero:  # a mean that is not synchronised differs between processes
        print(json.dumps(fingerprint(task, trainer)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
    sys.exit(0)
