"""Telling what is heard: training on labelled sounds, the `AudioTagger`, timelines of long sounds, live sound.

Importing this package loads nothing of its own: its public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_apps.audio.tagging.data import AudioData
    from mamba_apps.audio.tagging.live import LiveTagger
    from mamba_apps.audio.tagging.tagger import AudioTagger, BadSoundsError, Tags
    from mamba_apps.audio.tagging.task import AudioTask
    from mamba_apps.audio.tagging.timeline import Timeline

__all__ = ["AudioTagger", "Tags", "BadSoundsError", "LiveTagger", "Timeline", "AudioTask", "AudioData"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AudioTagger": "tagger",
        "Tags": "tagger",
        "BadSoundsError": "tagger",
        "LiveTagger": "live",
        "Timeline": "timeline",
        "AudioTask": "task",
        "AudioData": "data",
    },
)
