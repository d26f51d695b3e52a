"""The benchmark's scores: errors of every window, so that any choice of windows can be scored afterwards.

Dimensions in names: B batch, W windows, H horizon, C channels (variates).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class WindowErrors(Metric):
    """Mean squared and absolute error at the benchmark's scale, over all windows, steps and variates.

    Args:
        drop_last: Also score the windows that a loader of this batch size with ``drop_last`` keeps, which are the
            earliest ones; None does not.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, drop_last: int | None = None) -> None:
        super().__init__()
        self.drop_last = drop_last
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, start_B: Tensor, forecast_BHC: Tensor, future_BHC: Tensor) -> None:
        """Add windows, with the rows that they start at."""
        error_BHC = (forecast_BHC - future_BHC).double()
        parts = start_B.double(), error_BHC.square().mean((1, 2)), error_BHC.abs().mean((1, 2))
        self.rows.append(torch.stack(parts, dim=1))

    def windows(self) -> Tensor:
        """Return the squared and absolute error of each window (W, 2), in the order of their starts."""
        # Processes that share the windows repeat some, to have as many each.
        rows_W3 = torch.unique(dim_zero_cat(cast(Tensor, self.rows)), dim=0)
        return rows_W3[:, 1:]

    def compute(self) -> dict[str, Tensor]:
        """Return what `mean_errors` makes of all windows."""
        return mean_errors(self.windows(), self.drop_last)


def mean_errors(each_W2: Tensor, drop_last: int | None) -> dict[str, Tensor]:
    """Return the means of windows' squared and absolute errors.

    Args:
        each_W2: The errors of each window, in the order of their starts.
        drop_last: As in `WindowErrors`.

    Returns:
        "mse" and "mae"; with ``drop_last`` also "mse_drop_last" and "mae_drop_last", NaN where it keeps no window.
    """
    found = dict(zip(("mse", "mae"), each_W2.mean(0), strict=True))
    if drop_last is not None:
        kept = len(each_W2) // drop_last * drop_last
        found |= zip(("mse_drop_last", "mae_drop_last"), each_W2[:kept].mean(0), strict=True)
    return found
