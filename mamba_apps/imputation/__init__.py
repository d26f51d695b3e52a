"""Imputation: the missing values of multivariate series, filled in from what was observed around them.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.imputation.fills import FILLS
    from mamba_apps.imputation.imputer import Imputer
    from mamba_apps.imputation.network import ImputationNetwork

__all__ = ["FILLS", "Imputer", "ImputationNetwork"]

_HOMES = {"FILLS": "fills", "Imputer": "imputer", "ImputationNetwork": "network"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
