"""Telling what is heard: training on labelled sounds, the `AudioTagger`, timelines of long sounds, live sound.

Importing this package loads nothing of its own: its public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mamba_apps.audio.tagging.data import AudioData
    from mamba_apps.audio.tagging.live import LiveTagger
    from mamba_apps.audio.tagging.tagger import AudioTagger, BadSoundsError, Tags
    from mamba_apps.audio.tagging.task import AudioTask
    from mamba_apps.audio.tagging.timeline import Timeline

__all__ = ["AudioTagger", "Tags", "BadSoundsError", "LiveTagger", "Timeline", "AudioTask", "AudioData"]

_HOMES = {
    "AudioTagger": "tagger",
    "Tags": "tagger",
    "BadSoundsError": "tagger",
    "LiveTagger": "live",
    "Timeline": "timeline",
    "AudioTask": "task",
    "AudioData": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
