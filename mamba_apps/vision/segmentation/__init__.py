"""Semantic segmentation: a UPerNet head over any timm backbone, its training, and the `ImageSegmenter`.

Importing this package loads nothing beyond the image backbones: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.vision.segmentation.data import SegmentationData
    from mamba_apps.vision.segmentation.network import Segmenter
    from mamba_apps.vision.segmentation.segmenter import ImageSegmenter
    from mamba_apps.vision.segmentation.task import SegmentationTask
    from mamba_apps.vision.segmentation.upernet import UPerNetHead

__all__ = ["ImageSegmenter", "SegmentationTask", "SegmentationData", "Segmenter", "UPerNetHead"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ImageSegmenter": "segmenter",
        "SegmentationTask": "task",
        "SegmentationData": "data",
        "Segmenter": "network",
        "UPerNetHead": "upernet",
    },
)
