"""A set of sounds kept in memory, decoded once, from which whole batches of windows are cut on the device that trains.

Dimensions in names: N clips, B windows, S samples of a window, T samples of all clips one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mamba_apps.audio.tagging.policy import ClipPolicy
from mamba_apps.errors import UserError
from mamba_datasets.audio import Clip, ClipSet
from mamba_datasets.cores import usable_cores
from mamba_datasets.progress import followed

# Of the GPU's free memory, what sounds may take; the model needs the rest.
_SHARE = 0.25
_TOGETHER = 256


class ClipStore:
    """All clips of a set.

    Args:
        clips: The set; all of it is read now.
        limit_gib: How much memory it may take.

    Raises:
        DataError: A sound is broken.
        UserError: They take more than the limit.
    """

    def __init__(self, clips: ClipSet, limit_gib: float) -> None:
        waves: list[Tensor] = []
        count = 0
        for clip in followed(_decoded(clips), "reading sounds", len(clips)):
            waves.append(clip.samples_S)
            count += len(clip.samples_S)
            if count * 4 > limit_gib * 2**30:
                raise UserError(
                    f"{clips.source}: {len(waves):,} of its {len(clips):,} sounds fill the {limit_gib:g} GiB that "
                    "sounds may take",
                    "read them from the disk: --data.in_memory false, or allow more: --data.memory_gib",
                )
        self.lengths_N = torch.tensor([len(wave) for wave in waves])
        self.offsets_N = self.lengths_N.cumsum(0) - self.lengths_N
        self.wave_T = torch.cat(waves) if waves else torch.zeros(0)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def move_to(self, device: torch.device) -> None:
        """Bring the sounds to a device, if they leave its memory to the model; elsewhere they stay where they are."""
        if device.type == "cuda" and self.wave_T.device != device:
            free, _ = torch.cuda.mem_get_info(device)
            if self.wave_T.numel() * 4 > _SHARE * free:
                return
        self.wave_T = self.wave_T.to(device)
        self.lengths_N, self.offsets_N = self.lengths_N.to(device), self.offsets_N.to(device)

    def random_windows(self, index_B: Tensor, policy: ClipPolicy) -> tuple[Tensor, Tensor]:
        """Return a window of each clip cut at random, as `ClipPolicy.random_window` cuts it, and its own samples."""
        index_B = index_B.to(self.wave_T.device)
        spare_B = (self.lengths_N[index_B] - policy.samples).clamp(min=0)
        part_B = torch.rand(len(index_B), device=self.wave_T.device)
        start_B = torch.minimum((part_B * (spare_B + 1)).long(), spare_B)
        return self._cut(index_B, start_B, policy)

    def all_windows(self, index_N: Tensor, policy: ClipPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Return the windows that are heard of clips, as `ClipPolicy.windows` cuts them.

        Args:
            index_N: The clips.
            policy: What is heard of them.

        Returns:
            The windows (B, S), the samples of each that are its own (B,), and which of the clips it is of (B,).
        """
        starts = [policy.starts(length) for length in self.lengths_N[index_N.to(self.lengths_N.device)].tolist()]
        device = self.wave_T.device
        clip_B = torch.tensor([number for number, found in enumerate(starts) for _ in found], device=device)
        start_B = torch.tensor([start for found in starts for start in found], device=device)
        wave_BS, lengths_B = self._cut(index_N.to(device)[clip_B], start_B, policy)
        return wave_BS, lengths_B, clip_B

    def _cut(self, index_B: Tensor, start_B: Tensor, policy: ClipPolicy) -> tuple[Tensor, Tensor]:
        own_B = (self.lengths_N[index_B] - start_B).clamp(max=policy.samples)
        at_S = torch.arange(policy.samples, device=self.wave_T.device)
        if policy.short == "repeat":
            place_BS = at_S % own_B[:, None]
        else:
            place_BS = torch.minimum(at_S, own_B[:, None] - 1)
        wave_BS = self.wave_T[(self.offsets_N[index_B] + start_B)[:, None] + place_BS]
        if policy.short == "repeat":
            return wave_BS, torch.full_like(own_B, policy.samples)
        return wave_BS.masked_fill(at_S >= own_B[:, None], 0.0), own_B


def _decoded(clips: ClipSet) -> Iterator[Clip]:
    """Yield all clips; some threads decode, which leaves Python's lock, and few wait in memory to be taken."""
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for start in range(0, len(clips), _TOGETHER):
            yield from pool.map(clips.__getitem__, range(start, min(start + _TOGETHER, len(clips))))
