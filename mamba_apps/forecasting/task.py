"""Training a forecaster: a masked loss on scaled targets, scores in the data's own unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mamba_apps.errors import UserError
from mamba_apps.forecasting.data import WindowData
from mamba_apps.forecasting.intervals import quantile_levels
from mamba_apps.forecasting.losses import MaskedErrors, MaskedLoss, point_forecast
from mamba_apps.forecasting.models import ForecastModel, Sizes, create, spec
from mamba_apps.forecasting.panels import ForecastPanel, forecast_panels
from mamba_apps.forecasting.saving import Fitted
from mamba_apps.training import ModelCard
from mamba_apps.training.adamw import adamw
from mamba_datasets.series import WindowDataset

_PREPARED_ON, _CALIBRATED_ON, _CHUNK = 20_000, 4096, 512


class ForecastTask(pl.LightningModule):
    """A forecasting model with its loss and optimiser.

    The model is made when the shape of the problem is known: at once where ``sizes`` is given, else from the data.

    Args:
        model: A registered forecasting model, such as "patch", "smamba", "timemachine", "itransformer", "dlinear".
        model_options: That model's options.
        sizes: The shape of the problem; None takes it from the data.
        loss: "mae", "mse" or "huber", on scaled targets.
        quantiles: Probabilities whose quantiles are forecast, by the pinball loss; None for point forecasts.
        lr: The highest learning rate.
        weight_decay: AdamW's, on matrices alone.
        warmup: The part of the budget in which the learning rate rises; it falls as a cosine over the rest.
        betas: AdamW's.

    Raises:
        UserError: If the model, an option of it or the loss is unknown, or a number is out of range.
    """

    steps_whole = True

    def __init__(
        self,
        model: str = "patch",
        *,
        model_options: dict[str, Any] | None = None,
        sizes: Sizes | None = None,
        loss: str = "mae",
        quantiles: Sequence[float] | None = None,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise UserError(f"lr is {lr}", "give a positive learning rate")
        if not 0 <= warmup < 1:
            raise UserError(f"warmup is {warmup}", "give a part of the budget in [0, 1)")
        spec(model)
        if "quantiles" in (model_options or {}):
            raise UserError("quantiles are among the model's options", "give quantiles to the task, which trains them")
        self.model_name, self.model_options = model, dict(model_options or {})
        self.quantiles = None if quantiles is None else tuple(quantiles)
        self.loss = MaskedLoss(loss, quantiles)
        self.lr, self.weight_decay, self.warmup, self.betas = lr, weight_decay, warmup, betas
        self.scores = MaskedErrors()
        self.sizes: Sizes | None = None
        self.network: ForecastModel
        if sizes is not None:
            self._make_network(sizes)

    def prepare_for(self, data: WindowData) -> None:
        """Make the model for the data, or check that it was made for such data.

        Raises:
            UserError: If it was made for another shape.
        """
        if self.sizes is None:
            self._make_network(data.sizes)
        elif self.sizes != data.sizes:
            raise UserError(
                f"the model was made for {self.sizes}, the data is {data.sizes}",
                "use the lookback, horizon and covariates it was trained with",
            )

    def configure_model(self) -> None:
        """Make the model before a checkpoint is loaded into it; Lightning calls this."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, WindowData) and self.sizes is None:
            raise UserError("the shape of the problem is not known", "train with SeriesData, or give sizes")
        if not isinstance(data, WindowData):
            return
        # Lightning has new tensors made on the GPU here, and the windows are still with the host.
        with torch.device("cpu"):
            self.prepare_for(data)
            if self.trainer.state.fn == TrainerFn.FITTING:
                val = _spread(data.val, _CALIBRATED_ON) if data.val_steps else ()
                self.network.prepare(_spread(data.train, _PREPARED_ON, in_time=True), val)

    def on_validation_epoch_start(self) -> None:
        """Let the model choose what it chooses on validation windows."""
        data = cast(WindowData, self.trainer.datamodule)  # type: ignore[attr-defined]
        batches = _spread(data.val, _CALIBRATED_ON)
        self.network.calibrate(
            ({name: x.to(self.device) for name, x in batch.items()} for batch in batches),
            absolute=self.loss.kind != "mse",
        )

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return scaled forecasts (B, H, 1), or (B, H, 1, Q) for quantiles."""
        return self.network(batch)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, and log it."""
        loss = self.loss_of(batch)
        self.log("train/loss", loss, batch_size=len(batch["series"]))
        return loss

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return self.loss(self(batch), batch["future_y"], batch["future_observed"])

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score a batch of the validation part."""
        self._score(batch)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score a batch of the test part."""
        self._score(batch)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return forecasts in the data's unit, and which window each is."""
        return {
            "forecast": self._unscaled(self(batch), batch),
            "series": batch["series"],
            "origin": batch["origin"],
        }

    def on_validation_epoch_end(self) -> None:
        """Log val/mae and val/rmse."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log test/mae and test/rmse."""
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, and its rate over the run's budget."""
        return adamw(
            self, self.network, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup, betas=self.betas
        )

    @torch.no_grad()
    def plots(self, data: WindowData) -> list[ForecastPanel]:
        """Return pictures of the forecasts of a few test windows."""
        self.eval()

        def forecast(batch: Mapping[str, Tensor]) -> Tensor:
            batch = {name: value.to(self.device) for name, value in batch.items()}
            scaled = self(batch)
            point = point_forecast(scaled, self.quantiles)
            both = point if self.quantiles is None else torch.cat([point, scaled[:, :, 0]], dim=-1)
            return data.scaler.inverse_y(both, batch["series"])

        bands = (1, len(self.quantiles)) if self.quantiles and len(self.quantiles) > 1 else None
        return forecast_panels(data, self.label, forecast, bands)

    def fitted(self, data: WindowData, metrics: Mapping[str, float]) -> Fitted:
        """Return what a forecast after training needs.

        Args:
            data: The data it was trained on.
            metrics: Its scores.
        """
        return Fitted(
            self.model_name,
            self.network.cpu().eval(),
            self._network_options(),
            data.scaler,
            data.reading,
            levels=quantile_levels(self.quantiles),
            history=data.series_set.last(data.lookback),
            metrics=metrics,
        )

    def model_card(self, data: WindowData, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of the trained model, by which `Forecaster.load` reads its weights."""
        return self.fitted(data, metrics).card()

    @property
    def label(self) -> str:
        """The model's name, with the mixer where that is an option."""
        mixer = getattr(getattr(self, "network", None), "mixer_name", None)
        return f"{self.model_name}[{mixer}]" if mixer else self.model_name

    def _network_options(self) -> dict[str, Any]:
        return self.model_options if self.quantiles is None else {**self.model_options, "quantiles": self.quantiles}

    def _make_network(self, sizes: Sizes) -> None:
        self.network = create(self.model_name, **vars(sizes), **self._network_options())
        self.sizes = sizes

    def _score(self, batch: Mapping[str, Tensor]) -> None:
        point = point_forecast(self(batch), self.quantiles)
        self.scores.update(
            self._unscaled(point, batch), self._unscaled(batch["future_y"], batch), batch["future_observed"]
        )

    def _unscaled(self, values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        data = cast(WindowData, self.trainer.datamodule)  # type: ignore[attr-defined]
        return data.scaler.inverse_y(values, batch["series"])

    def _log_scores(self, part: str) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"{part}/{name}", value.float())
        self.scores.reset()


def _spread(windows: WindowDataset, at_most: int, *, in_time: bool = False) -> Iterator[Mapping[str, Tensor]]:
    """Return batches of so many windows at most, evenly spread; series by series, or all of them in order of time."""
    every = -(-len(windows) // at_most)
    numbers_W = torch.arange(0, len(windows), every)
    if in_time:
        # Counted back from their ends, which most series of a set have in common.
        series_W, origin_W = windows.locate(numbers_W)
        behind_W = windows.series_set.lengths[series_W] - origin_W
        numbers_W = numbers_W[torch.from_numpy(np.argsort(-behind_W, kind="stable"))]
    for numbers in numbers_W.split(_CHUNK):
        yield windows.batch(numbers)
