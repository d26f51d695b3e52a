"""Segmentation of medical volumes: training on an nnU-Net dataset, and the `Segmenter` that writes masks.

Importing this package loads nothing: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.medical.segmentation.data import VolumeData
    from mamba_apps.medical.segmentation.segmenter import Segmenter
    from mamba_apps.medical.segmentation.task import VolumeSegmentationTask

__all__ = ["Segmenter", "VolumeSegmentationTask", "VolumeData"]

_HOMES = {"Segmenter": "segmenter", "VolumeSegmentationTask": "task", "VolumeData": "data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
