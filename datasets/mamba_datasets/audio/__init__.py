"""Sound: files read and checked, whole, in part or piece by piece, resampled; labelled clips in every layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.audio.read import AudioFile, read_audio
from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_datasets.audio.clips import Clip, ClipSet
    from mamba_datasets.audio.folder import AudioFolder
    from mamba_datasets.audio.folds import hold_back, make_folds
    from mamba_datasets.audio.layouts.audioset import audioset_segments
    from mamba_datasets.audio.layouts.esc50 import esc50
    from mamba_datasets.audio.layouts.fsdd import fsdd
    from mamba_datasets.audio.layouts.known import open_clips
    from mamba_datasets.audio.layouts.speech_commands import speech_commands
    from mamba_datasets.audio.places import Place
    from mamba_datasets.audio.resampling import resample
    from mamba_datasets.audio.table import AudioTable

__all__ = [
    "AudioFile",
    "read_audio",
    "resample",
    "Clip",
    "Place",
    "ClipSet",
    "open_clips",
    "AudioFolder",
    "AudioTable",
    "speech_commands",
    "esc50",
    "fsdd",
    "audioset_segments",
    "make_folds",
    "hold_back",
]

# What needs torch is imported when it is asked for, so that checking a folder does not wait for it.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "resample": "resampling",
        "Clip": "clips",
        "Place": "places",
        "ClipSet": "clips",
        "open_clips": "layouts.known",
        "AudioFolder": "folder",
        "AudioTable": "table",
        "speech_commands": "layouts.speech_commands",
        "esc50": "layouts.esc50",
        "fsdd": "layouts.fsdd",
        "audioset_segments": "layouts.audioset",
        "make_folds": "folds",
        "hold_back": "folds",
    },
)
