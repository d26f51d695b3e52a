"""Volumes for segmentation: nnU-Net's raw layout, plans, geometry, preprocessing once, patches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_datasets.volumes.plan import NetworkPlan, Normalisation, Plan, Resampling

__all__ = ["NetworkPlan", "Normalisation", "Plan", "Resampling"]

# imported when asked for: readers need nibabel and scipy, which are extras
_LAZY = {
    "NetworkPlan": "plan",
    "Normalisation": "plan",
    "Plan": "plan",
    "Resampling": "plan",
}


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
