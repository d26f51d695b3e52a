"""How sounds of any length become the clips of one length that a model hears: what is cut, what fills, stated once.

Dimensions in names: B windows, S samples, N clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mamba_apps.errors import UserError

LONG = ("windows", "middle", "start")
SHORT = ("silence", "repeat")
# A spectrogram's frame, and less than any patch: nothing can be told of shorter sounds.
SHORTEST_SECONDS = 0.025


class SoundBatch(NamedTuple):
    """What a task trains and scores on.

    Args:
        wave_BS: Windows of sounds, all of one length.
        lengths_B: Each window's own samples; silence follows.
        targets_N: Of each clip, its class (N,), or its classes (N, K) as numbers in [0, 1].
        clip_B: The clip, from 0, that each window is of; in training, each is one of its own.
    """

    wave_BS: Tensor
    lengths_B: Tensor
    targets_N: Tensor
    clip_B: Tensor


@dataclass(frozen=True)
class ClipPolicy:
    """What a model hears of a sound; its fields are what a saved model remembers.

    In training a longer sound is cut at random. Otherwise this holds:

    Args:
        rate: Samples a second; sounds of another rate are resampled, and it is said.
        seconds: What the model hears at once.
        long: Of longer sounds: "windows", as many as cover them, whose probabilities are averaged; "middle" or
            "start", one window there.
        short: Shorter sounds are followed by "silence", or "repeat" themselves.

    Raises:
        UserError: If a setting is out of range.
    """

    rate: int = 16000
    seconds: float = 10.24
    long: Literal["windows", "middle", "start"] = "windows"
    short: Literal["silence", "repeat"] = "silence"

    def __post_init__(self) -> None:
        if self.rate < 1000:
            raise UserError(f"rate is {self.rate}", "give samples a second, such as 16000")
        if not self.seconds >= SHORTEST_SECONDS:
            raise UserError(f"seconds is {self.seconds}", f"give at least {SHORTEST_SECONDS}")
        if self.long not in LONG:
            raise UserError(f"long is {self.long!r}", f"choose one of {', '.join(LONG)}")
        if self.short not in SHORT:
            raise UserError(f"short is {self.short!r}", f"choose one of {', '.join(SHORT)}")

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return round(self.seconds * self.rate)

    def starts(self, length: int) -> list[int]:
        """Return where the windows of a sound of that many samples begin."""
        spare = length - self.samples
        if spare <= 0 or self.long == "start":
            return [0]
        if self.long == "middle":
            return [spare // 2]
        count = math.ceil(length / self.samples)
        return [round(index * spare / (count - 1)) for index in range(count)]

    def window(self, wave_S: Tensor, start: int) -> tuple[Tensor, int]:
        """Return a window (samples,) of a sound, and how many of its samples are the sound's own."""
        cut_S = wave_S[start : start + self.samples]
        missing = self.samples - len(cut_S)
        if missing == 0:
            return cut_S, self.samples
        if self.short == "repeat":
            return cut_S.repeat(math.ceil(self.samples / len(cut_S)))[: self.samples], self.samples
        return torch.cat([cut_S, cut_S.new_zeros(missing)]), len(cut_S)

    def windows(self, wave_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return the windows (B, samples) that are heard of a sound, and the samples of each that are its own (B,)."""
        cut = [self.window(wave_S, start) for start in self.starts(len(wave_S))]
        return torch.stack([wave for wave, _ in cut]), torch.tensor([length for _, length in cut])

    def random_window(self, wave_S: Tensor) -> tuple[Tensor, int]:
        """Return a window of a sound cut at random, by torch's own numbers, and how many samples are the sound's."""
        spare = max(len(wave_S) - self.samples, 0)
        return self.window(wave_S, int(torch.randint(spare + 1, ())))


def by_clip(x_BK: Tensor, clip_B: Tensor, clips: int) -> Tensor:
    """Return the mean (N, K) over the windows of each clip."""
    sum_NK = x_BK.new_zeros(clips, x_BK.shape[1]).index_add_(0, clip_B, x_BK)
    count_N = torch.bincount(clip_B, minlength=clips).clamp(min=1)
    return sum_NK / count_N[:, None]
