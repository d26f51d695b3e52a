"""What a model takes from its training sounds: how long they are, mean and deviation of their log mel energies."""

from __future__ import annotations

import math

from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_datasets.audio import ClipSet

MOST_SECONDS = 10.24
"""What models hear at once at most, unless more is asked for: the length of the published ones."""

# Evenly spread over the set, so many clips tell it well enough, and the heads of their files are soon read.
_CLIPS = 500
# Sounds that are all alike (silence) have no spread to divide by.
_LEAST_STD = 1e-3


def measure_statistics(clips: ClipSet, policy: ClipPolicy, mels: int) -> tuple[float, float]:
    """Return mean and standard deviation over all frames and bands of up to 500 clips, evenly spread over the set.

    Args:
        clips: The training clips.
        policy: What is heard of them.
        mels: Mel bands.

    Raises:
        DataError: A sound is broken.
    """
    bank = FilterBank(policy.rate, mels)
    total = square = 0.0
    count = 0
    for index in _some(clips):
        wave_S = clips.read(index, seconds=policy.seconds).samples_S
        if len(wave_S) < bank.size:
            continue
        log_BTF = bank.log_mel(wave_S[None]).double()
        total, square = total + float(log_BTF.sum()), square + float(log_BTF.square().sum())
        count += log_BTF.numel()
    if count == 0:
        return 0.0, 1.0
    mean = total / count
    return mean, max((square / count - mean**2) ** 0.5, _LEAST_STD)


def measure_seconds(clips: ClipSet) -> float:
    """Return the length that 19 of 20 clips do not exceed, in tenths of a second, of up to 500 spread over the set.

    Args:
        clips: The training clips, of whose files at most the headers are read.

    Raises:
        DataError: A sound is broken.
    """
    lengths = sorted(clips.seconds(index) for index in _some(clips))
    usual = lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))]
    return min(max(math.ceil(usual * 10 - 1e-6) / 10, 0.1), MOST_SECONDS)


def _some(clips: ClipSet) -> range:
    return range(0, len(clips), -(-len(clips) // _CLIPS))
