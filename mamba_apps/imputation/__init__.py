"""Imputation: the missing values of multivariate series, filled in from what was observed around them.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.imputation.fills import FILLS
    from mamba_apps.imputation.imputer import Imputer
    from mamba_apps.imputation.network import ImputationNetwork

__all__ = ["FILLS", "Imputer", "ImputationNetwork"]

__getattr__, __dir__ = lazily(__name__, {"FILLS": "fills", "Imputer": "imputer", "ImputationNetwork": "network"})
