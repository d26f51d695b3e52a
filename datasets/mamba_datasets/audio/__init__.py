"""Sound: files read and checked, whole, in part or piece by piece, resampled, sorted into classes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mamba_datasets.audio.read import AudioFile, read_audio

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import Clip, ClipSet, Place
    from mamba_datasets.audio.folder import AudioFolder
    from mamba_datasets.audio.resampling import resample

__all__ = ["AudioFile", "read_audio", "resample", "Clip", "Place", "ClipSet", "AudioFolder"]

# What needs torch is imported when it is asked for, so that checking a folder does not wait for it.
_LAZY = {"resample": "resampling", "Clip": "clips", "Place": "clips", "ClipSet": "clips", "AudioFolder": "folder"}


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
