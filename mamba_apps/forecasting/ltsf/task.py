"""Training on the benchmark: mean squared error at its scale, chosen by validation, scored on all test windows."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.ltsf.data import LtsfData, Windows
from mamba_apps.forecasting.ltsf.networks import NAMES, make_network
from mamba_apps.forecasting.ltsf.panels import ltsf_panels
from mamba_apps.forecasting.ltsf.published import published
from mamba_apps.forecasting.ltsf.scores import WindowErrors
from mamba_apps.forecasting.panels import ForecastPanel
from mamba_apps.registry import suggest


class LtsfTask(pl.LightningModule):
    """A network on a benchmark, trained by Adam with a rate that decays from epoch to epoch.

    The network is made when the data is known; what is not given here is then the published configuration.

    Args:
        model: "smamba", "timemachine", "mambasimple", "itransformer", "patchtst", "dlinear", or "patch", which reads
            each variate by itself.
        model_options: The network's options beside the published ones, or instead of them.
        marks: Whether networks that have a place for time marks are given them.
        lr: Adam's learning rate in the first epoch; None for the published one.
        decay: What it is multiplied by after each epoch; None for the published one.

    Raises:
        UserError: The model is not known, or a number is out of range.
    """

    def __init__(
        self,
        model: str = "smamba",
        *,
        model_options: dict[str, Any] | None = None,
        marks: bool = True,
        lr: float | None = None,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        if model not in NAMES:
            raise UserError(f"unknown model {model!r}", suggest(model, list(NAMES), "the models"))
        for name, value in (("lr", lr), ("decay", decay)):
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}", "give a number above 0, or leave it out")
        self.label, self.model_options, self.marks = model, dict(model_options or {}), marks
        self.lr, self.decay = lr, decay
        self.network: nn.Module | None = None

    def prepare_for(self, data: LtsfData) -> None:
        """Make the network for the data; `mamba_recipes` and Lightning's hook below call this.

        Raises:
            UserError: The network has no such option, or refuses a value.
        """
        if self.network is not None:
            return
        found = published(self.label, data.benchmark, data.horizon)
        marks = 0 if data.series.marks is None or not self.marks else data.series.marks.shape[1]
        options = {**found.options, **self.model_options}
        self.network, self.takes_marks = make_network(
            self.label, data.lookback, data.horizon, data.channels, marks, options
        )
        self.lr, self.decay = self.lr or found.lr, self.decay or found.decay
        self.errors = WindowErrors(data.drop_last)

    def configure_model(self) -> None:
        """Make the network before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, LtsfData):
            raise UserError("the shape of the problem is not known", "train with LtsfData")
        self.prepare_for(data)

    def forward(self, batch: Windows) -> Tensor:
        """Return the forecast of a batch of windows (B, H, C)."""
        assert self.network is not None  # noqa: S101  (made by prepare_for)
        return self.network(batch["past"], batch["marks"]) if self.takes_marks else self.network(batch["past"])

    def training_step(self, batch: Windows, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.mse_loss(self(batch), batch["future"])
        self.log("train/loss", loss, batch_size=len(batch["start"]))
        return loss

    def validation_step(self, batch: Windows, batch_idx: int) -> None:
        """Score a batch of the validation part."""
        self.errors.update(batch["start"], self(batch), batch["future"])

    def test_step(self, batch: Windows, batch_idx: int) -> None:
        """Score a batch of the test part."""
        self.errors.update(batch["start"], self(batch), batch["future"])

    def on_validation_epoch_end(self) -> None:
        """Log val/mse and val/mae."""
        self._log("val", ("mse", "mae"))

    def on_test_epoch_end(self) -> None:
        """Log test/mse and test/mae, and what else the data asks for."""
        self._log("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam, and its rate over the epochs."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr or 0.0)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay or 1.0)]

    @torch.no_grad()
    def plots(self, data: LtsfData) -> list[ForecastPanel]:
        """Return pictures of the forecasts of a few test windows."""
        self.eval()
        return ltsf_panels(data, self.label, self, self.device)

    def _log(self, part: str, names: tuple[str, ...] | None = None) -> None:
        for name, value in self.errors.compute().items():
            if names is None or name in names:
                self.log(f"{part}/{name}", value.float())
        self.errors.reset()
