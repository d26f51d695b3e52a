"""What a loader's items are: numbers of clips that are in memory, or windows that were read from the disk.

Dimensions in names: N clips, B windows, S samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mamba_apps.audio.tagging.policy import ClipPolicy, SoundBatch
from mamba_datasets.audio import ClipSet

Draw = Callable[[int], int]
Which = tuple[str, bool]


class ClipNumbers(Dataset[Any]):
    """The numbers of clips that are kept in memory, with their labels, a batch at a time.

    Args:
        which: The part that they are of, and whether windows are cut at random; both are passed on with each batch.
        labels_N: Their labels.
        draw: What stands in place of an index, such as a draw that balances classes; None for the index itself.
    """

    def __init__(self, which: Which, labels_N: Tensor, draw: Draw | None = None) -> None:
        self.which, self.labels_N, self.draw = which, labels_N, draw

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Which, Tensor, Tensor]:
        chosen = torch.as_tensor([self.draw(index) for index in indices] if self.draw else indices)
        return self.which, chosen, self.labels_N[chosen]


class CutClips(Dataset[SoundBatch]):
    """Sounds read from the disk one by one, and cut.

    Args:
        clips: The set.
        policy: What is heard of a sound.
        random: Whether one window is cut at random, or all that are heard.
        draw: As in `ClipNumbers`.
    """

    def __init__(self, clips: ClipSet, policy: ClipPolicy, *, random: bool, draw: Draw | None = None) -> None:
        self.clips, self.policy, self.random, self.draw = clips, policy, random, draw

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> SoundBatch:
        number = self.draw(index) if self.draw else index
        if self.random:
            wave_S, length = self._random_window(number)
            wave_BS, lengths_B = wave_S[None], torch.tensor([length])
        else:
            wave_BS, lengths_B = self.policy.windows(self.clips[number].samples_S)
        target = torch.as_tensor(self.clips.label(number))
        return SoundBatch(wave_BS, lengths_B, target[None], torch.zeros(len(wave_BS), dtype=torch.int64))

    def _random_window(self, number: int) -> tuple[Tensor, int]:
        """Return a window of a sound, nothing else of which is decoded."""
        seconds = self.policy.seconds
        spare = self.clips.seconds(number) - seconds
        if spare <= 0:
            return self.policy.random_window(self.clips[number].samples_S)
        start = spare * float(torch.rand(()))
        return self.policy.window(self.clips.read(number, start, seconds).samples_S[: self.policy.samples], 0)


def joined(items: Any) -> Any:
    """Make a batch of items; what already is one passes."""
    if not isinstance(items, list):
        return items
    counts = torch.tensor([len(item.lengths_B) for item in items])
    waves, lengths, targets, _ = zip(*items, strict=True)
    clip_B = torch.arange(len(items)).repeat_interleave(counts)
    return SoundBatch(torch.cat(waves), torch.cat(lengths), torch.cat(targets), clip_B)


class BalancedDraw:
    """A draw of clips, by torch's own numbers, in which each class comes as often as any other.

    A clip of several classes weighs as much as all of them together, as the published recipes of AudioSet have it. A
    class, and no closure, because workers that are spawned are sent it.

    Args:
        clips: The set.
    """

    def __init__(self, clips: ClipSet) -> None:
        label_NC = clips.labels if clips.multilabel else torch.nn.functional.one_hot(clips.labels, len(clips.classes))
        weight_N = label_NC.double() @ (1 / label_NC.double().sum(dim=0).clamp(min=1))
        self._bound_N = weight_N.cumsum(0)

    def __call__(self, index: int) -> int:
        """Return the number of a clip, whatever the index."""
        point = torch.rand((), dtype=torch.float64) * self._bound_N[-1]
        return min(int(torch.searchsorted(self._bound_N, point, right=True)), len(self._bound_N) - 1)
