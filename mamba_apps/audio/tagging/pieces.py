"""Sound as it comes: resampled piece by piece, exactly as if it were whole, and cut into windows that may overlap.

Dimensions in names: S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mamba_datasets.audio import resample

# torchaudio's filter: so many zero crossings to either side, of a sinc that passes this part of the band.
_CROSSINGS, _ROLLOFF = 6, 0.99


class LiveResampler:
    """Brings sound to another rate piece by piece; all pieces together are what `resample` makes of the whole.

    Output lags behind by the reach of its filter, some thousandths of a second at usual rates.

    Args:
        rate: Samples a second that come in.
        to: Samples a second that come out.
        path: Where the sound comes from, for errors.

    Raises:
        DataError: ``rate`` is no rate of sound, or too odd to be resampled.
    """

    def __init__(self, rate: int, to: int, path: str | Path = "sound") -> None:
        resample(torch.zeros(1), rate, to, path)  # refuses what cannot be done
        self.rate, self.to, self.path = rate, to, path
        common = math.gcd(rate, to)
        # So many samples in make so many out, and the filter has the same phase again.
        self._in, self._out = rate // common, to // common
        reach = math.ceil(_CROSSINGS * self._in / (min(self._in, self._out) * _ROLLOFF))
        self._guard = math.ceil(reach / self._in)
        self._waiting_S = torch.zeros(0)
        self._first = self._next = 0

    def length(self, samples: int) -> int:
        """Return how many samples come out of so many."""
        return math.ceil(samples * self._out / self._in)

    def step(self, wave_S: Tensor) -> Tensor:
        """Return the samples that are final after a piece."""
        if self.rate == self.to:
            return wave_S
        self._waiting_S = torch.cat([self._waiting_S, wave_S])
        whole = len(self._waiting_S) // self._in
        stop = self._first + whole - self._guard
        if stop <= self._next:
            return wave_S.new_zeros(0)
        made_S = resample(self._waiting_S[: whole * self._in], self.rate, self.to, self.path)
        out_S = made_S[(self._next - self._first) * self._out : (stop - self._first) * self._out]
        keep = max(stop - self._guard, 0)
        self._waiting_S = self._waiting_S[(keep - self._first) * self._in :].clone()
        self._first, self._next = keep, stop
        return out_S

    def finish(self) -> Tensor:
        """Return the last samples, after which nothing comes."""
        if self.rate == self.to or len(self._waiting_S) == 0:
            return torch.zeros(0)
        made_S = resample(self._waiting_S, self.rate, self.to, self.path)
        out_S = made_S[(self._next - self._first) * self._out :]
        self._waiting_S = torch.zeros(0)
        return out_S

    def pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the sound of all pieces at the other rate."""
        for piece_S in pieces:
            yield self.step(piece_S)
        yield self.finish()


def cut_windows(pieces: Iterable[Tensor], starts: Sequence[int], size: int) -> Iterator[Tensor]:
    """Yield windows of a sound that comes in pieces, of which no more is kept than the next window needs.

    Args:
        pieces: The sound.
        starts: Where windows begin, none before the one ahead of it.
        size: Their samples; the sound's end may leave fewer.
    """
    waiting_S, at = torch.zeros(0), 0
    rest = iter(pieces)
    for start in starts:
        while at + len(waiting_S) < start + size and (piece_S := next(rest, None)) is not None:
            past = min(start - at, len(waiting_S))
            waiting_S, at = torch.cat([waiting_S[past:], piece_S]), at + past
        yield waiting_S[start - at : start - at + size]
