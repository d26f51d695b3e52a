"""The last lookback of several series, to which observations are added one at a time.

Dimensions in names: B series, L lookback, H horizon, X past covariates and those known ahead (P + F), F known-future
covariates, S static ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_apps.forecasting.models.base import Batch, Sizes


@dataclass(frozen=True)
class RollingWindow:
    """What was observed in the last steps of several series; steps before the first were not.

    Args:
        past_y_BL1: The scaled targets.
        past_observed_BL1: bool, whether each was observed.
        past_x_BLX: The covariates.
        static_BS: The static ones.
    """

    past_y_BL1: Tensor
    past_observed_BL1: Tensor
    past_x_BLX: Tensor
    static_BS: Tensor

    @classmethod
    def empty(cls, sizes: Sizes, static_BS: Tensor) -> RollingWindow:
        """Return the window before the first observation."""
        shape = len(static_BS), sizes.lookback
        return cls(
            static_BS.new_zeros(*shape, 1),
            torch.zeros(*shape, 1, dtype=torch.bool, device=static_BS.device),
            static_BS.new_zeros(*shape, sizes.n_past + sizes.n_future),
            static_BS,
        )

    def append(self, y_B: Tensor, observed_B: Tensor, x_BX: Tensor) -> None:
        """Add a step of each series at the end, in place of the first."""
        for past_BLZ, last_BZ in (
            (self.past_y_BL1, y_B[:, None]),
            (self.past_observed_BL1, observed_B[:, None]),
            (self.past_x_BLX, x_BX),
        ):
            past_BLZ[:, :-1] = past_BLZ[:, 1:].clone()
            past_BLZ[:, -1] = last_BZ

    def batch(self, future_x_BHF: Tensor) -> Batch:
        """Return the windows to forecast from."""
        return {
            "past_y": self.past_y_BL1,
            "past_observed": self.past_observed_BL1,
            "past_x": self.past_x_BLX,
            "static": self.static_BS,
            "future_x": future_x_BHF,
        }
