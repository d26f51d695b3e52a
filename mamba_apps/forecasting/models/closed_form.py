"""A closed form beside a network: solved before training, and between the two lies the forecast.

Forecasts that err differently are often better together than either, and most where there is little to learn from: a
network that saw a hundred windows is corrected by a linear map that can be solved for, and one that saw many is left
alone. In training the network forecasts by itself.

Dimensions in names: B batch, L lookback, H horizon, T steps, Q quantiles, G gains that are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mamba_apps.forecasting.models.base import Batch, ForecastModel, Sizes
from mamba_apps.forecasting.models.linear_path import LinearPath, Windows, windows_of

_GAINS = 11
_HALFWAY, _CLEARLY = 0.5, 1.01
# One period's wandering looks like something that can be forecast: a tenth less error there is soon had by chance.
_CLEARLY_WANDERING = 1.1
_SPREAD_OF = 4096


class BesideClosedForm(ForecastModel):
    """A forecaster with a network, and a linear map in closed form that it answers to.

    A subclass calls `add_closed_form` where it is made, and in `forward`, but in training, lets its forecast lie
    ``gain`` of the way from ``anchor``'s. With quantiles ``spread_HQ`` says how far each lies from the closed form,
    first by the errors that this has on training windows.

    Args:
        sizes: As in `ForecastModel`.
        quantiles: As in `ForecastModel`.
    """

    anchor: LinearPath | None
    gain: Tensor
    solved: Tensor
    spread_HQ: Tensor | None

    def __init__(self, sizes: Sizes, quantiles: Sequence[float] | None = None) -> None:
        super().__init__(sizes, quantiles)
        self.anchor = None
        self.register_buffer("spread_HQ", None)

    def add_closed_form(self, season: int) -> None:
        """Make place for the closed form.

        Args:
            season: Steps of the season that it may be pulled toward, at most the lookback.
        """
        sizes = self.sizes
        self.anchor = LinearPath(sizes.lookback, sizes.horizon, season)
        self.informed = sizes.n_past + sizes.n_future + sizes.n_static > 0
        self.register_buffer("solved", torch.tensor(False))
        self.register_buffer("gain", torch.ones(()))

    @torch.no_grad()
    def prepare(self, train: Iterable[Batch], val: Iterable[Batch] = ()) -> None:
        """Solve for the closed form; see `ForecastModel.prepare`.

        Windows with an unobserved target are left out. What was solved before, as in a model that is trained further,
        stays.
        """
        if self.anchor is None or self.solved:
            return
        known = windows_of(self._relative_windows(train))
        if known is None:
            return
        self.anchor.solve(known, windows_of(self._relative_windows(val)))
        self.solved.fill_(True)
        self.gain.copy_(self._home(self.anchor.wanders))
        if self.spread_HQ is not None and self.quantiles is not None:
            past_BL, level_B1, future_BH = (part[:: len(part) // _SPREAD_OF + 1] for part in known)
            levels_Q = torch.tensor(self.quantiles, dtype=past_BL.dtype, device=past_BL.device)
            error_BH = future_BH - self.anchor(past_BL) - self.anchor.drift(level_B1)
            self.spread_HQ.copy_(torch.quantile(error_BH, levels_Q, dim=0).T)

    @torch.no_grad()
    def calibrate(self, val: Iterable[Batch], *, absolute: bool = False) -> None:
        """Choose where between closed form and network the forecast lies; see `ForecastModel.calibrate`.

        That is halfway, unless the error, or the pinball loss of quantiles, is clearly lower somewhere else from the
        closed form, a gain of 0, to the network, 1. Where the past tells little beyond the last value it is 0,
        as what a network finds in one period's wandering is not there in the next, unless there are covariates and
        the error is lower by a tenth elsewhere.
        """
        if self.anchor is None:
            return
        training, before = self.training, self.gain.clone()
        self.eval()
        gain_G = torch.linspace(0, 1, _GAINS, device=before.device)
        error_G = torch.zeros(_GAINS, dtype=torch.float64, device=before.device)
        for batch in val:
            target_BH1Q = batch["future_y"][..., None]
            ends = []
            for gain in (0.0, 1.0):
                self.gain.fill_(gain)
                forecast = self(batch)
                ends.append(forecast if self.quantiles else forecast[..., None])
            for place in range(_GAINS):
                error = target_BH1Q - torch.lerp(ends[0], ends[1], place / (_GAINS - 1))
                if self.quantiles is not None:
                    each = _pinball(error, self.quantiles)
                else:
                    each = error.abs() if absolute else error.square()
                error_G[place] += each.masked_fill(~batch["future_observed"][..., None], 0.0).sum(dtype=torch.float64)
        # Where there was nothing to choose on, it stays; decided on the device, which nothing waits for.
        wanders = self.anchor.wanders
        at_home = torch.where(wanders, error_G[0], error_G[_GAINS // 2])
        clearly = torch.where(wanders, _CLEARLY_WANDERING, _CLEARLY)
        chosen = torch.where(at_home <= clearly * error_G.min(), self._home(wanders), gain_G[error_G.argmin()])
        self.gain.copy_(torch.where(error_G.any(), chosen, before))
        if not self.informed:
            self.gain.masked_fill_(wanders, 0.0)
        self.train(training)

    def answered(self, y_BHQ: Tensor, past_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """Return a forecast (B, H, Q) brought to its place between the closed form and itself.

        Args:
            y_BHQ: What the network forecasts of the targets themselves.
            past_BL: The past of the targets; what it holds where nothing was observed does not matter.
            observed_BL: bool, what was observed.
        """
        if self.anchor is None or self.training:
            return y_BHQ
        past_BL, observed_BL = held(past_BL, observed_BL)
        level_B1 = level_of(past_BL, observed_BL)
        relative_BL = relative(past_BL, observed_BL, level_B1)
        closed_BHQ = (self.anchor(relative_BL) + self.anchor.drift(level_B1) + level_B1)[..., None]
        if self.spread_HQ is not None:
            closed_BHQ = closed_BHQ + self.spread_HQ
        return closed_BHQ + self.gain * (y_BHQ - closed_BHQ)

    @staticmethod
    def _home(wanders: Tensor) -> Tensor:
        return torch.where(wanders, 0.0, _HALFWAY)

    def _relative_windows(self, batches: Iterable[Batch]) -> Iterator[Windows]:
        device = self.gain.device
        for batch in batches:
            batch = {name: values.to(device) for name, values in batch.items()}
            whole_B = batch["future_observed"].all(dim=1)[:, 0] & batch["past_observed"].any(dim=1)[:, 0]
            past_BL, observed_BL = (batch[name][whole_B, :, 0] for name in ("past_y", "past_observed"))
            past_BL, observed_BL = held(past_BL, observed_BL)
            level_B1 = level_of(past_BL, observed_BL)
            yield relative(past_BL, observed_BL, level_B1), level_B1, batch["future_y"][whole_B, :, 0] - level_B1


def held(past_BT: Tensor, observed_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the past with the last observed value in place of what was not, 0 before the first; and the mask."""
    step_T = torch.arange(past_BT.shape[1], device=past_BT.device)
    last_BT = torch.where(observed_BT, step_T, -1).cummax(dim=1).values
    held_BT = past_BT.masked_fill(~observed_BT, 0.0).gather(1, last_BT.clamp(min=0))
    return held_BT.masked_fill(last_BT < 0, 0.0), observed_BT


def level_of(past_BT: Tensor, observed_BT: Tensor) -> Tensor:
    """Return the mean (B, 1) of what was observed; 0 where nothing was."""
    # Summed step by step, as levels up to each step are: a network's tokens and the closed form see the same.
    total_B1 = past_BT.masked_fill(~observed_BT, 0.0).cumsum(1)[:, -1:]
    return total_B1 / observed_BT.sum(1, keepdim=True).clamp(min=1)


def relative(past_BL: Tensor, observed_BL: Tensor, level_B1: Tensor) -> Tensor:
    """Return the window less its level; before the first observation it is at its level."""
    return (past_BL - level_B1).masked_fill(observed_BL.cumsum(1) == 0, 0.0)


def _pinball(error: Tensor, quantiles: Sequence[float]) -> Tensor:
    levels_Q = torch.tensor(quantiles, dtype=error.dtype, device=error.device)
    return torch.maximum(levels_Q * error, (levels_Q - 1) * error)
