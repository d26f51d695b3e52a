"""Training on the benchmark: mean squared error at its scale, chosen by validation, scored on all test windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.ltsf.data import LtsfData, Windows
from mamba_apps.forecasting.ltsf.networks import NAMES, EachVariate, make_network
from mamba_apps.forecasting.ltsf.panels import ltsf_panels
from mamba_apps.forecasting.ltsf.published import published
from mamba_apps.forecasting.ltsf.scores import WindowErrors
from mamba_apps.forecasting.models import Batch
from mamba_apps.forecasting.panels import ForecastPanel
from mamba_datasets.report import nearest

_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss}
_SOLVED_FOR, _CALIBRATED_ON, _CHUNK = 60_000, 20_000, 512


class LtsfTask(pl.LightningModule):
    """A network on a benchmark, trained by Adam with a rate that decays from epoch to epoch.

    The network is made when the data is known; what is not given here is then the published configuration.

    Args:
        model: "smamba", "timemachine", "mambasimple", "itransformer", "patchtst", "dlinear", or "anchor" or "patch",
            which read each variate by itself.
        model_options: The network's options beside the published ones, or instead of them.
        marks: Whether networks that have a place for time marks are given them.
        lr: Adam's learning rate in the first epoch; None for the published one.
        decay: What it is multiplied by after each epoch; None for the published one.
        loss: What is minimised, "mse" or "mae"; None for the published one. The epoch is chosen by the MSE either way.
        mix: Beta's parameter of the weights at which two windows, of any variates, are mixed in training; 0 leaves
            them as they are. Only for networks that read each variate by itself. None for the published one.

    Raises:
        UserError: The model is not known, or a number is out of range.
    """

    steps_whole = True

    def __init__(
        self,
        model: str = "smamba",
        *,
        model_options: dict[str, Any] | None = None,
        marks: bool = True,
        lr: float | None = None,
        decay: float | None = None,
        loss: str | None = None,
        mix: float | None = None,
    ) -> None:
        super().__init__()
        if model not in NAMES:
            raise UserError(f"unknown model {model!r}", nearest(model, list(NAMES)))
        for name, value in (("lr", lr), ("decay", decay)):
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}", "give a number above 0, or leave it out")
        self.label, self.model_options, self.marks = model, dict(model_options or {}), marks
        if loss not in (None, *_LOSSES):
            raise UserError(f"unknown loss {loss!r}", f"choose {' or '.join(_LOSSES)}")
        if mix is not None and mix < 0:
            raise UserError(f"mix is {mix}", "give 0, or a positive number")
        self.lr, self.decay, self.loss, self.mix = lr, decay, loss, mix
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
        self.lr, self.decay, self.loss = self.lr or found.lr, self.decay or found.decay, self.loss or found.loss
        self.mix = found.mix if self.mix is None else self.mix
        if self.mix and not isinstance(self.network, EachVariate):
            raise UserError(f"{self.label} reads all variates together: their windows cannot be mixed", "leave mix out")
        self.errors = WindowErrors(data.drop_last)

    def configure_model(self) -> None:
        """Make the network before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, LtsfData):
            raise UserError("the shape of the problem is not known", "train with LtsfData")
        # Lightning has new tensors made on the GPU here, and the module does not say so yet.
        with torch.device("cpu"):
            self.prepare_for(data)
            if self.trainer.state.fn == TrainerFn.FITTING:
                self.prepare(data)

    def prepare(self, data: LtsfData) -> None:
        """Let a network that takes something from the data without gradients do so."""
        if isinstance(self.network, EachVariate):
            self.network.model.prepare(*(self._windows(data, part, _SOLVED_FOR) for part in ("train", "val")))

    def calibrate(self, data: LtsfData) -> None:
        """Let a network that has something to choose on validation windows do so."""
        if isinstance(self.network, EachVariate):
            self.network.model.calibrate(self._windows(data, "val", _CALIBRATED_ON))

    def forward(self, batch: Windows) -> Tensor:
        """Return the forecast of a batch of windows (B, H, C)."""
        assert self.network is not None  # noqa: S101  (made by prepare_for)
        return self.network(batch["past"], batch["marks"]) if self.takes_marks else self.network(batch["past"])

    def training_step(self, batch: Windows, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss_of(batch)
        self.log("train/loss", loss, batch_size=len(batch["start"]))
        return loss

    def loss_of(self, batch: Windows) -> Tensor:
        """Return the loss of a batch of training windows, mixed where that is asked for."""
        if self.mix:
            batch = _mixed(batch, self.mix)
        return _LOSSES[cast(str, self.loss)](self(batch), batch["future"])

    def on_validation_epoch_start(self) -> None:
        """Choose what is chosen on validation windows, before they are scored."""
        self.calibrate(self.trainer.datamodule)  # type: ignore[attr-defined]

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

    def _windows(self, data: LtsfData, part: str, at_most: int) -> Iterator[Batch]:
        """Return windows of single series, evenly spread over a part; at most so many, about."""
        assert isinstance(self.network, EachVariate)  # noqa: S101  (asked by its callers)
        starts = data.starts(part)
        every = -(-len(starts) * data.channels // at_most)
        for start_B in torch.tensor(starts[::every], device=self.device).split(_CHUNK):
            batch = data.gather(start_B)
            yield self.network.apart(batch["past"], batch["future"])

    def _log(self, part: str, names: tuple[str, ...] | None = None) -> None:
        for name, value in self.errors.compute().items():
            if names is None or name in names:
                self.log(f"{part}/{name}", value.float())
        self.errors.reset()


def _mixed(batch: Windows, beta: float) -> Windows:
    """Return windows of which each is a weighted mean of two, of any variates.

    What is linear in the series stays as right as it was; nothing else can be learned by heart.
    """
    lookback, channels = batch["past"].shape[1], batch["past"].shape[2]
    x_TS = torch.cat([batch["past"], batch["future"]], dim=1).transpose(0, 1).flatten(1)
    parameter_S = x_TS.new_full((x_TS.shape[1],), beta)
    # Beta as a ratio of Gammas, which a captured graph can draw anew at every replay.
    first_S, second_S = torch._standard_gamma(parameter_S), torch._standard_gamma(parameter_S)
    weight_S = first_S / (first_S + second_S).clamp(min=1e-12)
    x_TS = torch.lerp(x_TS[:, torch.rand_like(parameter_S).argsort()], x_TS, weight_S)
    past_BLC, future_BHC = (
        x_TS.unflatten(1, (-1, channels)).transpose(0, 1).split([lookback, len(x_TS) - lookback], dim=1)
    )
    return {**batch, "past": past_BLC, "future": future_BHC}
