"""What every forecaster over a batch of windows is, and how it treats steps that were not observed.

Dimensions in names: B batch, L lookback, H horizon, C targets (1), P past covariates, F known-future ones, S static
ones, Q quantiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError

Batch = Mapping[str, Tensor]
"""Windows as `mamba_datasets.series.WindowDataset` collates them: past_y (B, L, 1), past_observed (B, L, 1) bool,
past_x (B, L, P + F), future_x (B, H, F), static (B, S); for the loss future_y and future_observed (B, H, 1)."""

KINDS = ("past", "future", "static")


@dataclass(frozen=True)
class Sizes:
    """The shape of a forecasting problem.

    Args:
        lookback: Steps of the past (L), at least 1.
        horizon: Steps to forecast (H), at least 1.
        n_past: Covariates known up to the present only (P).
        n_future: Covariates known ahead (F).
        n_static: Covariates of the whole series (S).

    Raises:
        UserError: If a size is out of range.
    """

    lookback: int
    horizon: int
    n_past: int = 0
    n_future: int = 0
    n_static: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 1 if name in ("lookback", "horizon") else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}", f"give a whole number of at least {least}")


class ForecastModel(nn.Module, ABC):
    """Forecast scaled targets from a batch of windows.

    What a target holds where it was not observed reaches neither the forecast nor a gradient.

    Args:
        sizes: The shape of the problem.
        quantiles: Probabilities in increasing order, each in (0, 1), whose quantiles the model forecasts; None for one
            forecast.

    Raises:
        UserError: If there are covariates of a kind that the model does not take, or a quantile is out of range.
    """

    covariates: ClassVar[frozenset[str]] = frozenset()
    """The kinds of covariates it takes by itself, out of "past", "future" and "static"."""

    through_effect: ClassVar[frozenset[str]] = frozenset()
    """The kinds that it takes through the covariate effect shared by models that have no place for them."""

    def __init__(self, sizes: Sizes, quantiles: Sequence[float] | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.quantiles = None if quantiles is None else checked_quantiles(quantiles)
        for kind, count in zip(KINDS, (sizes.n_past, sizes.n_future, sizes.n_static), strict=True):
            if count and kind not in self.covariates | self.through_effect:
                raise UserError(
                    f"{type(self).__name__} takes no {kind} covariates, and {count} are given",
                    f"leave them out, or choose a model that takes them: {_taking(kind)}",
                )

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Forecast.

        Args:
            batch: Windows; only what is known at the origin is read.

        Returns:
            Scaled forecasts (B, H, 1), or (B, H, 1, Q) in increasing order where the model forecasts quantiles.
        """

    def prepare(self, train: Iterable[Batch], val: Iterable[Batch] = ()) -> None:
        """Take from the data what needs no gradients, once, before training; most models take nothing.

        Args:
            train: The training windows, all or some of them, with their future.
            val: Windows that a choice may be made on.
        """

    def calibrate(self, val: Iterable[Batch], *, absolute: bool = False) -> None:
        """Choose on validation windows what no gradient decides, before they are scored; most models choose nothing.

        Args:
            val: Validation windows, all or some of them, with their future.
            absolute: Whether point forecasts are chosen by their absolute error instead of the squared one.
        """

    def init_state(self, static_BS: Tensor) -> Any:
        """Return the state of a live forecast before the first observation.

        With `step` and `forecast` it follows series at a constant cost an observation, for inference alone:

            state = model.init_state(static_BS)
            for y_B, observed_B, x_BX in observations:
                state = model.step(state, y_B, observed_B, x_BX)
            forecast = model.forecast(state, future_x_BHF)

        Unless a model says otherwise its state is the last lookback, and its forecast that of this window.

        Args:
            static_BS: The static covariates (B, S), whose device and type the state has; S may be 0.
        """
        from mamba_apps.forecasting.models.rolling import RollingWindow

        return RollingWindow.empty(self.sizes, static_BS)

    def step(self, state: Any, y_B: Tensor, observed_B: Tensor, x_BX: Tensor) -> Any:
        """Read one step of each series, and return the state after it; the given one may be changed in place.

        Args:
            state: The state before.
            y_B: Scaled targets; what one holds that was not observed does not matter.
            observed_B: bool, whether each was observed.
            x_BX: The step's covariates (B, P + F), as in "past_x" of a batch.
        """
        state.append(y_B, observed_B, x_BX)
        return state

    @torch.no_grad()
    def forecast(self, state: Any, future_x_BHF: Tensor) -> Tensor:
        """Return what `forward` returns, for the steps after the last one read; the state stays as it is.

        Args:
            state: What `step` returned.
            future_x_BHF: Covariates of the horizon that are known ahead (B, H, F); F may be 0.
        """
        return self(state.batch(future_x_BHF))


def checked_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Return the quantiles as a tuple.

    Raises:
        UserError: If there is none, or they are not increasing within (0, 1).
    """
    found = tuple(float(q) for q in quantiles)
    if not found or any(not 0 < q < 1 for q in found) or any(a >= b for a, b in pairwise(found)):
        raise UserError(f"quantiles are {list(found)}", "give increasing probabilities between 0 and 1")
    return found


def increasing(values: Tensor) -> Tensor:
    """Return quantile forecasts sorted along the last dimension, so that none crosses another."""
    return values.sort(dim=-1).values


def masked_mean(values: Tensor, observed: Tensor, dim: int) -> Tensor:
    """Return the mean of what was observed along a dimension, kept with size 1; 0 where nothing was."""
    count = observed.sum(dim, keepdim=True).clamp(min=1)
    return values.masked_fill(~observed, 0.0).sum(dim, keepdim=True) / count


def interpolated(values_BL: Tensor, observed_BL: Tensor) -> Tensor:
    """Return the values with a straight line through what was not observed.

    Before the first and after the last observed step the nearest observed value holds; a row without any is 0.
    """
    length = values_BL.shape[1]
    step_L = torch.arange(length, device=values_BL.device)
    before_BL = torch.where(observed_BL, step_L, -1).cummax(dim=1).values
    after_BL = torch.where(observed_BL, step_L, length).flip(1).cummin(dim=1).values.flip(1)
    left_BL = torch.where(before_BL < 0, after_BL, before_BL).clamp(max=length - 1)
    right_BL = torch.where(after_BL >= length, left_BL, after_BL)
    part_BL = (step_L - left_BL).clamp(min=0).to(values_BL.dtype) / (right_BL - left_BL).clamp(min=1)
    zeroed_BL = values_BL.masked_fill(~observed_BL, 0.0)
    return torch.lerp(zeroed_BL.gather(1, left_BL), zeroed_BL.gather(1, right_BL), part_BL)


def _taking(kind: str) -> str:
    from mamba_apps.forecasting.models.registry import names, spec

    return ", ".join(name for name in names() if kind in spec(name).cls.covariates | spec(name).cls.through_effect)
