"""Forecasters over batches of windows, by name."""

from __future__ import annotations

from mamba_apps.forecasting.models.adapters import from_reference, our_names
from mamba_apps.forecasting.models.anchor import AnchoredForecaster
from mamba_apps.forecasting.models.base import Batch, ForecastModel, Sizes
from mamba_apps.forecasting.models.dlinear import DLinear
from mamba_apps.forecasting.models.inverted import Inverted, ITransformer, SMamba
from mamba_apps.forecasting.models.mambasimple import MambaSimple
from mamba_apps.forecasting.models.patch import PatchForecaster
from mamba_apps.forecasting.models.patchtst import PatchTST
from mamba_apps.forecasting.models.published import (
    DLinearForecaster,
    ITransformerForecaster,
    MambaSimpleForecaster,
    PatchTSTForecaster,
    SMambaForecaster,
    TimeMachineForecaster,
)
from mamba_apps.forecasting.models.registry import ModelSpec, create, names, register, spec
from mamba_apps.forecasting.models.timemachine import TimeMachine

__all__ = [
    "create",
    "names",
    "register",
    "spec",
    "ModelSpec",
    "Batch",
    "ForecastModel",
    "Sizes",
    "AnchoredForecaster",
    "PatchForecaster",
    "SMambaForecaster",
    "ITransformerForecaster",
    "PatchTSTForecaster",
    "DLinearForecaster",
    "TimeMachineForecaster",
    "MambaSimpleForecaster",
    "Inverted",
    "SMamba",
    "ITransformer",
    "PatchTST",
    "DLinear",
    "TimeMachine",
    "MambaSimple",
    "from_reference",
    "our_names",
]
