"""Sound: Audio Mamba, the Audio Spectrogram Transformer and Mamba on waveforms, with their front end."""

from __future__ import annotations

from mamba_apps.audio.ast import AST
from mamba_apps.audio.audio_mamba import AudioMamba
from mamba_apps.audio.checkpoint import adapt_audio_mamba, adapt_transformer, adapt_vision_mamba
from mamba_apps.audio.filterbank import STATISTICS, FilterBank
from mamba_apps.audio.model import AudioModel, RawSound
from mamba_apps.audio.wave_mamba import WaveMamba
from mamba_apps.audio.zoo import create_model, model_names

__all__ = [
    "create_model",
    "model_names",
    "AudioModel",
    "AudioMamba",
    "AST",
    "WaveMamba",
    "FilterBank",
    "RawSound",
    "STATISTICS",
    "adapt_audio_mamba",
    "adapt_vision_mamba",
    "adapt_transformer",
]
