"""Sound files: read and checked, whole, in part or piece by piece."""

from __future__ import annotations

from mamba_datasets.audio.read import AudioFile, read_audio

__all__ = ["AudioFile", "read_audio"]
