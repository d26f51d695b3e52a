"""Mamba for images, volumes, audio and time series, compared honestly with Transformers.

Importing this package loads nothing heavy: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.audio.tagging import AudioTagger
    from mamba_apps.forecasting import Forecaster
    from mamba_apps.imputation import Imputer
    from mamba_apps.medical.segmentation import Segmenter
    from mamba_apps.series_classification import SeriesClassifier
    from mamba_apps.vision.classification import ImageClassifier
    from mamba_apps.vision.segmentation import ImageSegmenter

__version__ = "0.1.0"
__all__ = [
    "AudioTagger",
    "Forecaster",
    "ImageClassifier",
    "ImageSegmenter",
    "Imputer",
    "Segmenter",
    "SeriesClassifier",
    "__version__",
]

_HOMES = {
    "AudioTagger": "mamba_apps.audio.tagging",
    "Forecaster": "mamba_apps.forecasting",
    "ImageClassifier": "mamba_apps.vision.classification",
    "ImageSegmenter": "mamba_apps.vision.segmentation",
    "Imputer": "mamba_apps.imputation",
    "Segmenter": "mamba_apps.medical.segmentation",
    "SeriesClassifier": "mamba_apps.series_classification",
}
# Sub-packages that are used by attribute: `import mamba_apps; mamba_apps.vision` registers with timm.
_PARTS = ("audio", "forecasting", "imputation", "medical", "mixers", "series_classification", "text", "vision")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS})
