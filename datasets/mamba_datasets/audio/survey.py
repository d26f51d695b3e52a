"""What a check learns of many sounds: each decoded once, piece by piece, as training would, and told in a few lines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mamba_datasets.audio.read import AudioFile
from mamba_datasets.errors import DataError
from mamba_datasets.survey import some

# Below -80 dB of full scale nothing is heard; from this share of samples at full scale on, it is.
_SILENT = 1e-4
_FULL, _CLIPPED = 0.9999, 0.001
_PIECE_SECONDS = 30.0
_FRAME_SECONDS = 0.025


@dataclass(frozen=True)
class Facts:
    """What is known of one file.

    Args:
        path: The file.
        seconds: How long it is.
        rate: Its samples a second.
        channels: How many it has.
        peak: Its largest sample, whatever the sign, in the mean of the channels.
        clipped: The share of its samples that are at full scale.
        digest: A hash of its samples.
        error: What keeps it from being used; the other facts are then empty.
    """

    path: str
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    peak: float = 0.0
    clipped: float = 0.0
    digest: bytes = b""
    error: DataError | None = None


def inspect_sound(path: str) -> Facts:
    """Decode one sound as training would."""
    content, peak, full = hashlib.blake2b(digest_size=16), 0.0, 0
    try:
        with AudioFile(path) as file:
            for wave_S in file.blocks(_PIECE_SECONDS):
                size_S = np.abs(wave_S)
                peak, full = max(peak, float(size_S.max())), full + int((size_S >= _FULL).sum())
                content.update(wave_S.tobytes())
            return Facts(path, file.seconds, file.rate, file.channels, peak, full / file.frames, content.digest())
    except DataError as error:
        return Facts(path, error=error)


def describe(facts: list[Facts]) -> list[str]:
    """Tell what sounds have in common, and which are odd."""
    usable = [fact for fact in facts if fact.error is None]
    if not usable:
        return []
    lengths = sorted(fact.seconds for fact in usable)
    short, middle, long = (f"{lengths[index]:.4g} s" for index in (0, len(lengths) // 2, -1))
    rates = "rates" if len({fact.rate for fact in usable}) == 1 else "several rates, which training resamples to one"
    notes = [
        f"lengths: {short} to {long}, the middle one {middle}, {sum(lengths) / 3600:.3g} h in all",
        f"{rates}: {_counted(f'{fact.rate} Hz' for fact in usable)}",
        f"channels: {_counted(str(fact.channels) for fact in usable)}",
    ]
    brief = [fact.path for fact in usable if fact.seconds < _FRAME_SECONDS]
    silent = [fact.path for fact in usable if fact.peak < _SILENT]
    clipped = [fact.path for fact in usable if fact.clipped >= _CLIPPED]
    notes += [f"{len(brief)} shorter than a spectrogram's frame ({_FRAME_SECONDS:g} s): {some(brief)}"] if brief else []
    notes += [f"{len(silent)} silent: {some(silent)}"] if silent else []
    notes += [f"{len(clipped)} clipped ({_CLIPPED:.1%} of samples or more): {some(clipped)}"] if clipped else []
    return notes


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common())
