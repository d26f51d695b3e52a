"""The long-term forecasting benchmark: multivariate windows, published networks, baselines in closed form.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.forecasting.ltsf.baselines import LtsfBaseline
    from mamba_apps.forecasting.ltsf.data import LtsfData
    from mamba_apps.forecasting.ltsf.task import LtsfTask

__all__ = ["LtsfBaseline", "LtsfData", "LtsfTask"]

__getattr__, __dir__ = lazily(__name__, {"LtsfBaseline": "baselines", "LtsfData": "data", "LtsfTask": "task"})
