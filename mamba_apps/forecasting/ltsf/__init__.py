"""The long-term forecasting benchmark: multivariate windows, published networks, baselines in closed form.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.forecasting.ltsf.baselines import LtsfBaseline
    from mamba_apps.forecasting.ltsf.data import LtsfData
    from mamba_apps.forecasting.ltsf.task import LtsfTask

__all__ = ["LtsfBaseline", "LtsfData", "LtsfTask"]

_HOMES = {"LtsfBaseline": "baselines", "LtsfData": "data", "LtsfTask": "task"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
