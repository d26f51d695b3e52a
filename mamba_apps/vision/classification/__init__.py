"""Image classification: any timm model, its training from a folder of images, and the `ImageClassifier`.

Importing this package loads nothing of its own: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.vision.classification.classifier import BadImagesError, ImageClassifier, Prediction
    from mamba_apps.vision.classification.data import ImageData
    from mamba_apps.vision.classification.small import SmallImageData
    from mamba_apps.vision.classification.streamed import StreamedImageData
    from mamba_apps.vision.classification.task import ClassificationTask

__all__ = [
    "ImageClassifier",
    "Prediction",
    "BadImagesError",
    "ClassificationTask",
    "ImageData",
    "SmallImageData",
    "StreamedImageData",
]

_HOMES = {
    "ImageClassifier": "classifier",
    "Prediction": "classifier",
    "BadImagesError": "classifier",
    "ClassificationTask": "task",
    "ImageData": "data",
    "SmallImageData": "small",
    "StreamedImageData": "streamed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
