"""Semantic segmentation: a UPerNet head over any timm backbone, its training, and the `ImageSegmenter`.

Importing this package loads nothing beyond the image backbones: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.vision.segmentation.data import SegmentationData
    from mamba_apps.vision.segmentation.network import Segmenter
    from mamba_apps.vision.segmentation.segmenter import ImageSegmenter
    from mamba_apps.vision.segmentation.task import SegmentationTask
    from mamba_apps.vision.segmentation.upernet import UPerNetHead

__all__ = ["ImageSegmenter", "SegmentationTask", "SegmentationData", "Segmenter", "UPerNetHead"]

_HOMES = {
    "ImageSegmenter": "segmenter",
    "SegmentationTask": "task",
    "SegmentationData": "data",
    "Segmenter": "network",
    "UPerNetHead": "upernet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
