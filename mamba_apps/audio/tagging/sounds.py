"""What a person hands over to be heard, a file or an array, as pieces at the model's rate, with what was done to it.

Dimensions in names: S samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mamba_apps.audio.tagging.pieces import LiveResampler
from mamba_apps.audio.tagging.policy import SHORTEST_SECONDS
from mamba_apps.errors import UserError
from mamba_datasets.audio import AudioFile
from mamba_datasets.errors import DataError

Array = NDArray[np.generic] | Tensor
Sound = str | Path | Array
Channel = int | Literal["mean"]

MEMORY = "the array"
# Below -80 dB of full scale nothing is heard.
_SILENT = 1e-4
_PIECE_SECONDS = 10.0
# Samples of floats lie about within [-1, 1]; such as these were whole numbers once.
_ABSURD = 100.0


@dataclass
class Hearing:
    """A sound that is open, at the model's rate.

    Args:
        name: Its path; empty for one in memory.
        seconds: How long it is.
        samples: The same at the model's rate.
        pieces: It, piece by piece; to be heard once.
        notes: What was done to it, and what it is besides.
        peak: The largest sample so far, whatever the sign.
    """

    name: str
    seconds: float
    samples: int
    pieces: Iterator[Tensor]
    notes: list[str] = field(default_factory=list)
    peak: float = 0.0

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, once the sound was heard."""
        return (*self.notes, "it is silent") if self.peak < _SILENT else tuple(self.notes)


@contextmanager
def opened(sound: Sound, rate: int | None, to: int, channel: Channel) -> Iterator[Hearing]:
    """Open a file, which is read piece by piece, or an array.

    Args:
        sound: The file, or samples (S,), (S, C) or (C, S); the shorter axis is the channels.
        rate: The array's samples a second; None for a file, which knows.
        to: The model's.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: It is broken, empty, too short, not finite, or of an absurd rate.
        UserError: The rate is missing, or given for a file.
    """
    if isinstance(sound, str | Path):
        if rate is not None:
            raise UserError(f"{sound}: a rate of {rate} was given", "leave it out: the file knows its own")
        with AudioFile(sound, channel) as file:
            blocks = (torch.from_numpy(wave) for wave in file.blocks(_PIECE_SECONDS))
            yield _hearing(str(sound), blocks, file.frames, file.rate, to, _channel_note(file.channels, channel))
        return
    if isinstance(sound, list | tuple) and any(isinstance(part, str | Path) for part in sound):
        raise UserError("a list of files is given, and one sound was expected", "use tag_files or embed_files")
    if rate is None:
        raise UserError("an array does not know its rate", "give it: tag(samples, rate)")
    wave_S, note = samples_of(sound, channel)
    yield _hearing("", iter([wave_S]), len(wave_S), rate, to, note)


def samples_of(sound: Array, channel: Channel = "mean") -> tuple[Tensor, str]:
    """Return the samples (S,) of an array as float32, and what was done about its channels.

    Raises:
        DataError: It is empty, not finite, of no numbers, or of more than two dimensions.
    """
    array = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
    if array.dtype.kind not in "iuf":
        raise DataError(MEMORY, "type", f"expected numbers, found {array.dtype}", "give samples as floats or integers")
    if array.ndim not in (1, 2) or array.size == 0:
        raise DataError(
            MEMORY, "shape", f"expected samples, or samples of channels, found {array.shape}", "give one sound"
        )
    whole = array.dtype.kind != "f"
    if whole:
        scale = 2.0 ** (8 * array.dtype.itemsize - 1)
        wave = ((array.astype(np.float64) - (scale if array.dtype.kind == "u" else 0.0)) / scale).astype(np.float32)
    else:
        wave = array.astype(np.float32)
    wave_SC = wave[:, None] if wave.ndim == 1 else wave if wave.shape[0] >= wave.shape[1] else wave.T
    channels = wave_SC.shape[1]
    if channel != "mean" and not 0 <= channel < channels:
        found = f"there is no channel {channel}, only {channels} of them"
        raise DataError(MEMORY, "channels", found, 'give a number from 0, or "mean"')
    finite = np.isfinite(wave_SC)
    if not finite.all():
        frame, number = np.argwhere(~finite)[0]
        found = f"expected finite numbers, found {wave_SC[frame, number]} in channel {number}"
        raise DataError(MEMORY, f"frame {frame}", found, "mend or cut the sound")
    wave_S = wave_SC.mean(axis=1) if channel == "mean" else wave_SC[:, channel]
    if not whole and np.abs(wave_S).max() > _ABSURD:
        found = f"expected samples in [-1, 1], found {np.abs(wave_S).max():g}"
        raise DataError(MEMORY, "samples", found, "divide 16-bit samples by 32768, or give them as int16")
    return torch.from_numpy(np.ascontiguousarray(wave_S)), _channel_note(channels, channel)


def _hearing(name: str, blocks: Iterator[Tensor], frames: int, rate: int, to: int, note: str) -> Hearing:
    seconds = frames / rate if rate > 0 else 0.0
    resampler = LiveResampler(rate, to, name or MEMORY)
    if seconds < SHORTEST_SECONDS:
        expected = f"expected {SHORTEST_SECONDS:g} s of sound at least, found {seconds:.4g} s"
        raise DataError(name or MEMORY, "length", expected, "give a longer sound")
    notes = [note] if note else []
    if rate != to:
        above = f", and has nothing above {rate / 2000:g} kHz" if rate < to else ""
        notes.append(f"resampled from {rate} Hz to {to} Hz{above}")
    hearing = Hearing(name, seconds, resampler.length(frames), iter(()), notes)

    def heard() -> Iterator[Tensor]:
        for block_S in blocks:
            hearing.peak = max(hearing.peak, float(block_S.abs().max()))
            yield block_S

    hearing.pieces = resampler.pieces(heard())
    return hearing


def _channel_note(channels: int, channel: Channel) -> str:
    if channels == 1:
        return ""
    return f"the mean of {channels} channels" if channel == "mean" else f"channel {channel} of {channels}"
