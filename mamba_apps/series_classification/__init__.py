"""Which class a multivariate series belongs to, however long it is.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.series_classification.classifier import SeriesClassifier
    from mamba_apps.series_classification.network import SeriesNetwork

__all__ = ["SeriesClassifier", "SeriesNetwork"]

_HOMES = {"SeriesClassifier": "classifier", "SeriesNetwork": "network"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
