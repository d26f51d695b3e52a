"""Which class a multivariate series belongs to, however long it is.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.series_classification.classifier import SeriesClassifier
    from mamba_apps.series_classification.network import SeriesNetwork

__all__ = ["SeriesClassifier", "SeriesNetwork"]

__getattr__, __dir__ = lazily(__name__, {"SeriesClassifier": "classifier", "SeriesNetwork": "network"})
