"""Mean and standard deviation of a set's log mel energies, by which a model's spectrograms are normalised."""

from __future__ import annotations

from mamba_apps.audio.filterbank import FilterBank
from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_datasets.audio import ClipSet

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
    for index in range(0, len(clips), -(-len(clips) // _CLIPS)):
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
