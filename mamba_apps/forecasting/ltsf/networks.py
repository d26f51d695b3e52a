"""The networks of the benchmark: from the past of all variates (B, L, C) to their future (B, H, C).

Dimensions in names: B batch, L lookback, H horizon, C channels (variates), M time marks, S sequences (B * C).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.forecasting.models import (
    DLinear,
    ForecastModel,
    ITransformer,
    MambaSimple,
    PatchTST,
    SMamba,
    TimeMachine,
    create,
)
from mamba_apps.registry import check_option_names
from mamba_datasets.report import nearest


class EachVariate(nn.Module):
    """A forecaster of single series, with the same weights for every variate.

    Args:
        model: The forecaster, made without covariates.
    """

    def __init__(self, model: ForecastModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_enc_BLC: Tensor) -> Tensor:
        """Forecast the variates (B, L, C), each by itself: (B, H, C)."""
        return self.model(self.apart(x_enc_BLC))[..., 0].unflatten(0, (len(x_enc_BLC), -1)).transpose(1, 2)

    def apart(self, past_BLC: Tensor, future_BHC: Tensor | None = None) -> dict[str, Tensor]:
        """Return windows of all variates (B, L, C), and their futures, as B * C windows of one series each."""
        x_SL1 = past_BLC.transpose(1, 2).flatten(0, 1)[..., None]
        none_S = x_SL1.new_zeros(len(x_SL1), 0)
        found = {
            "past_y": x_SL1,
            "past_observed": torch.ones_like(x_SL1, dtype=torch.bool),
            "past_x": none_S[:, None].expand(-1, x_SL1.shape[1], -1),
            "future_x": none_S[:, None].expand(-1, self.model.sizes.horizon, -1),
            "static": none_S,
        }
        if future_BHC is not None:
            found["future_y"] = future_BHC.transpose(1, 2).flatten(0, 1)[..., None]
            found["future_observed"] = torch.ones_like(found["future_y"], dtype=torch.bool)
        return found


NETWORKS: Mapping[str, type[nn.Module]] = {
    "smamba": SMamba,
    "timemachine": TimeMachine,
    "mambasimple": MambaSimple,
    "itransformer": ITransformer,
    "patchtst": PatchTST,
    "dlinear": DLinear,
}
NAMES = (*NETWORKS, "anchor", "patch")


def make_network(
    name: str, lookback: int, horizon: int, channels: int, marks: int, options: Mapping[str, Any]
) -> tuple[nn.Module, bool]:
    """Make a network.

    Args:
        name: One of `NAMES`.
        lookback: Steps of the past (L).
        horizon: Steps to forecast (H).
        channels: The number of variates (C).
        marks: The number of time marks (M); 0 for none.
        options: The network's own options.

    Returns:
        The network, and whether it takes the time marks as its second argument.

    Raises:
        UserError: There is no such network, or it has no such option.
    """
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}", nearest(name, list(NAMES)))
    if name not in NETWORKS:
        return EachVariate(create(name, lookback, horizon, **options)), False
    cls = NETWORKS[name]
    known = [option for option in inspect.signature(cls).parameters if option not in ("lookback", "horizon")]
    check_option_names(name, options, known)
    given = {key: value for key, value in {"channels": channels, "marks": marks}.items() if key in known}
    takes_marks = len(inspect.signature(cls.forward).parameters) > 2
    return cls(lookback, horizon, **given, **options), takes_marks and marks > 0
