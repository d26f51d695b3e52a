"""A tiny module, data and candidates for the command's tests; importing it puts them under the allowed prefixes.

The comparison preloads the modules that a recipe names, so that this also holds in a candidate's own process.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mamba_apps.errors import UserError
from mamba_recipes import safety
from mamba_recipes.compare import Panel

if "toy_candidates" not in safety.ALLOWED_PREFIXES:
    safety.ALLOWED_PREFIXES = (*safety.ALLOWED_PREFIXES, "toy_candidates")


class ToyData(pl.LightningDataModule):
    """y = 2x + noise, 256 points for training, 64 each for validation and test."""

    def __init__(self, noise: float = 0.1, batch_size: int = 32, broken: bool = False) -> None:
        super().__init__()
        self.noise, self.batch_size, self.broken = noise, batch_size, broken

    def prepare_data(self) -> None:
        if self.broken:
            raise UserError("the toy line is bent", "straighten it")

    def describe(self) -> str:
        return "toy line, 384 points"

    def part(self, seed: int, count: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(count, 1, generator=generator)
        return TensorDataset(x, 2 * x + self.noise * torch.randn(count, 1, generator=generator))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.part(0, 256), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.part(1, 64), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.part(2, 64), batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()


class ToyModule(pl.LightningModule):
    """A line, or a small network."""

    def __init__(self, mixer: str = "mamba1", lr: float = 0.05, width: int = 0, pause: float = 0.0) -> None:
        super().__init__()
        if mixer not in ("mamba1", "attention"):
            raise UserError(f"unknown mixer {mixer!r}", "choose mamba1 or attention")
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1)) if width else nn.Linear(1, 1)
        self.mixer, self.lr, self.pause = mixer, lr, pause

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        return (self(batch[0]) - batch[1]).abs().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_mae", (self(batch[0]) - batch[1]).abs().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        error = (self(batch[0]) - batch[1]).abs().mean()
        self.log_dict({"test_mae": error, "test_mse": error.square()})

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def plots(self, data: ToyData) -> list[Panel]:
        x, y = data.part(2, 24).tensors
        with torch.no_grad():
            guess = self(x)[:, 0]
        hours = [f"2018-01-01T{hour:02d}:00:00" for hour in range(24)]
        lines = {"observed": y[:, 0].numpy(), "forecast": guess.numpy()}
        return [Panel("A toy day", hours, "time", "y", lines, {"forecast": (guess - 0.2, guess + 0.2)})]


class MeanCandidate:
    """Predicts the training mean; no optimiser."""

    parameters = 1

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def fit(self, data: ToyData, budget: object, seed: int) -> None:
        self.test = data.part(2, 64).tensors[1]
        self.mean = data.part(0, 256).tensors[1].mean() + self.offset

    def evaluate(self) -> dict[str, float]:
        error = (self.test - self.mean).abs().mean()
        return {"mae": float(error), "mse": float(error**2)}

    def plots(self) -> list[Panel]:
        return []


class FailingCandidate(MeanCandidate):
    """Fails while it fits, with a mendable error or another."""

    def __init__(self, mendable: bool = False) -> None:
        self.mendable = mendable

    def fit(self, data: ToyData, budget: object, seed: int) -> None:
        print("a line that a library printed")
        if self.mendable:
            raise UserError("the toy cannot fit", "buy another toy")
        raise ZeroDivisionError("toy division")


class DyingCandidate(MeanCandidate):
    """Its process is killed, as by the system when memory runs out."""

    def fit(self, data: ToyData, budget: object, seed: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HungryCandidate(MeanCandidate):
    """Takes and touches a known amount of memory."""

    def __init__(self, mib: int = 200) -> None:
        super().__init__()
        self.mib = mib

    def fit(self, data: ToyData, budget: object, seed: int) -> None:
        block = torch.ones(self.mib, 2**18)
        super().fit(data, budget, seed)
        del block


TOY_RECIPE = """
recipe:
  title: A toy line
  domain: toys
  paper: none
  expected: MAE about 0.08
  hardware: any
  time: seconds
  seed: 1
  command: mamba-apps compare toy
  metric: {name: mae, direction: min, label: MAE}
  sample: point
model:
  class_path: toy_candidates.ToyModule
  init_args: {mixer: mamba1, lr: 5e-2}
data:
  class_path: toy_candidates.ToyData
trainer:
  max_epochs: 2
  accelerator: cpu
  monitor: val_mae
compare:
  budget: 2epochs
  sweeps: {mixer: model.mixer}
  candidates:
    toy[mamba1]: {family: mamba, twin: "toy[attention]", overrides: {model.mixer: mamba1}}
    toy[attention]: {family: transformer, overrides: {model.mixer: attention, model.lr: 0.02}}
    mean: {family: naive, class_path: toy_candidates.MeanCandidate}
"""


def write_recipe(folder: Path, text: str = TOY_RECIPE, name: str = "toy.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
