"""Image classification: any timm model, its training from a folder of images, and the `ImageClassifier`.

Importing this package loads nothing of its own: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ImageClassifier": "classifier",
        "Prediction": "classifier",
        "BadImagesError": "classifier",
        "ClassificationTask": "task",
        "ImageData": "data",
        "SmallImageData": "small",
        "StreamedImageData": "streamed",
    },
)
