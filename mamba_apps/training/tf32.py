"""Products of float32 matrices in TF32 while a Trainer runs."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


class TF32Products(Callback):
    """Let a GPU multiply float32 matrices in TF32, which keeps 11 bits of each factor; afterwards all is as before.

    The setting is the whole process's, so it is put back however the run ends. Nothing changes without a GPU.
    """

    def __init__(self) -> None:
        self._before: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Turn TF32 on."""
        if trainer.strategy.root_device.type == "cuda" and self._before is None:
            self._before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put back what was set."""
        if self._before is not None:
            torch.set_float32_matmul_precision(self._before)
            self._before = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put back what was set: Lightning tears no callback down then."""
        self.teardown(trainer, pl_module, "")
