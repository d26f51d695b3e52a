"""Segmentation of medical volumes: training on an nnU-Net dataset, and the `Segmenter` that writes masks.

Importing this package loads nothing: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.medical.segmentation.data import VolumeData
    from mamba_apps.medical.segmentation.segmenter import Segmenter
    from mamba_apps.medical.segmentation.task import VolumeSegmentationTask

__all__ = ["Segmenter", "VolumeSegmentationTask", "VolumeData"]

__getattr__, __dir__ = lazily(
    __name__, {"Segmenter": "segmenter", "VolumeSegmentationTask": "task", "VolumeData": "data"}
)
