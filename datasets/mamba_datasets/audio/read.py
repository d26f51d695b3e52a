"""One sound file: opened, decoded and checked, whole, in part or piece by piece, or refused.

The rules of `AudioFile`, none of which is silent elsewhere:

- The content decides, not the name: a FLAC named .wav is read as a FLAC.
- Samples are 32-bit floats; those of whole-number formats lie in [-1, 1). Nothing is clipped, scaled or resampled.
- Several channels become one by their mean, unless one of them is asked for by its number.
- A file that holds fewer frames than its header claims is refused with both counts. A compressed file tells only when
  it is read to where it breaks.
- A sample that is no finite number is refused. Silence is sound.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from mamba_datasets.audio.claims import missing_part
from mamba_datasets.audio.mpeg import LONGEST_FRAME, counted_frames
from mamba_datasets.errors import DataError
from mamba_datasets.tree import LEAVE_OUT, Medium

# Decoders are attack surface: only these are accepted.
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
SOUND = Medium("sound", SUFFIXES)
RATES = (1000, 768_000)
"""The lowest and the highest rate that a sound may have, in samples a second."""
# What an MP3's decoder carries over from at most; it begins so much earlier, and right.
_RUN_UP = 32 * 1152
# Memory is taken for so many frames at a time: a header may claim what no memory holds.
_AT_ONCE = 2**22
# What libsndfile takes a FLAC's length for that was written to a pipe.
_UNKNOWN = 2**62
# How finely the frames of a damaged file are counted.
_FEW = 1024
_REPLACE = f"replace it, or {LEAVE_OUT}"

Channel = int | Literal["mean"]


class _Steady(soundfile.SoundFile):
    """A file that reads on without asking where it is.

    soundfile asks by seeking, before and after each read, and after a seek an MP3's decoder lacks what it had carried
    over from the frames before: pieces would begin with a gap.
    """

    def seekable(self) -> bool:
        return False


def _name(path: str | Path) -> str | bytes:
    """Return a file's name as soundfile takes it, which refuses one that holds bytes that are no text."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


class AudioFile:
    """An open sound file; a context manager.

    Args:
        path: The file.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Raises:
        DataError: The file is missing, empty, damaged, truncated or no sound, or has no frames, an absurd rate, or not
            that channel.
    """

    def __init__(self, path: str | Path, channel: Channel = "mean") -> None:
        self.path = path
        _check_file(path)
        try:
            self._file = _Steady(_name(path))
        except soundfile.LibsndfileError as error:
            raise _no_sound(path, error) from None
        self.format: str = self._file.format
        try:
            self._check(channel)
            self.frames = self._length()
        except BaseException:
            self.close()
            raise
        self.channel = channel
        self._at = 0
        self.rate: int = self._file.samplerate
        self.channels: int = self._file.channels

    def _check(self, channel: Channel) -> None:
        if self._file.format not in FORMATS:
            found = f"is no sound that is read here: expected {', '.join(FORMATS)}, found {self._file.format}"
            raise DataError(self.path, "file", found, f"convert it, or {_REPLACE}")
        with open(self.path, "rb") as file:
            if missing := missing_part(file):
                raise DataError(self.path, "end", f"is truncated: {missing}", _REPLACE)
        check_rate(self._file.samplerate, self.path)
        if self._file.frames == 0:
            raise DataError(self.path, "frames", "holds no sound (0 frames)", _REPLACE)
        if channel != "mean" and not 0 <= channel < self._file.channels:
            found = f"there is no channel {channel}, only {self._file.channels} of them"
            raise DataError(self.path, "channels", found, 'give a number from 0, or "mean"')

    def _length(self) -> int:
        """Return how many frames there are by the header, or, where it does not say, by count."""
        claimed: int = self._file.frames
        if claimed >= _UNKNOWN:
            return _decodable(self.path)
        counted = counted_frames(self.path) if self.format == "MP3" else None
        if counted is None:
            return claimed
        # the decoder's guess, from size and bit rate, is where it stops
        if claimed + LONGEST_FRAME < counted:
            found = f"its varying bit rate hides its end: it holds {counted} frames, {claimed} can be read"
            raise DataError(self.path, "length", found, f"convert it to FLAC, or {LEAVE_OUT}")
        return min(claimed, counted)

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def seconds(self) -> float:
        """How long the sound is."""
        return self.frames / self.rate

    def read(self, start: float = 0.0, stop: float | None = None) -> NDArray[np.float32]:
        """Return the samples (S,) from one time to another.

        Args:
            start: In seconds.
            stop: In seconds; None for the end.

        Raises:
            DataError: The times lie outside the sound, it is damaged or truncated there, or not finite.
        """
        first, last = round(start * self.rate), self.frames if stop is None else round(stop * self.rate)
        if not 0 <= first < last <= self.frames:
            found = f"{start:g} s to {'the end' if stop is None else f'{stop:g} s'}"
            expected = f"expected times within the {self.seconds:g} s that it lasts, found {found}"
            raise DataError(self.path, "times", expected, "give others")
        self._seek(first)
        return self._next(last - first)

    def blocks(self, seconds: float) -> Iterator[NDArray[np.float32]]:
        """Yield the samples (S,) of one piece after the other, so that a sound of hours takes the memory of a piece.

        Args:
            seconds: Length of a piece; the last one may be shorter.

        Raises:
            DataError: The sound is damaged or truncated, or not finite.
        """
        size = max(1, round(seconds * self.rate))
        self._seek(0)
        for start in range(0, self.frames, size):
            yield self._next(min(size, self.frames - start))

    def _seek(self, frame: int) -> None:
        if frame == self._at:
            return
        run_up = min(frame, _RUN_UP) if self.format == "MP3" else 0
        try:
            self._at = self._file.seek(frame - run_up)
            self._at += len(self._file.read(run_up, dtype="float32"))
        except soundfile.LibsndfileError as error:
            raise self._damaged(frame, error) from None

    def _next(self, count: int) -> NDArray[np.float32]:
        start, parts = self._at, []
        while self._at < start + count:
            wanted = min(start + count - self._at, _AT_ONCE)
            try:
                parts.append(self._file.read(wanted, dtype="float32", always_2d=True))
            except soundfile.LibsndfileError as error:
                raise self._damaged(start, error) from None
            self._at += len(parts[-1])
            if len(parts[-1]) < wanted:
                break
        wave_SC = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(wave_SC) < count:
            found = f"is truncated: its header claims {self.frames} frames, {start + len(wave_SC)} are there"
            raise DataError(self.path, "end", found, _REPLACE)
        finite = np.isfinite(wave_SC)
        if not finite.all():
            frame, channel = np.argwhere(~finite)[0]
            found = f"expected finite numbers, found {wave_SC[frame, channel]} in channel {channel}"
            raise DataError(self.path, f"frame {start + frame}", found, _REPLACE)
        wave_S = wave_SC.mean(axis=1) if self.channel == "mean" else wave_SC[:, self.channel]
        return np.ascontiguousarray(wave_S)

    def _damaged(self, frame: int, error: soundfile.LibsndfileError) -> DataError:
        there = _decodable(self.path)
        found = f"is damaged: its header claims {self.frames} frames, {there} can be decoded ({_one_line(error)})"
        return DataError(self.path, f"after frame {max(frame, there)}", found, _REPLACE)


def read_audio(
    path: str | Path, start: float = 0.0, stop: float | None = None, channel: Channel = "mean"
) -> tuple[NDArray[np.float32], int]:
    """Read a sound file, or a part of it.

    Args:
        path: The file.
        start: In seconds.
        stop: In seconds; None for the end.
        channel: "mean" of the channels, or the number of one of them, from 0.

    Returns:
        The samples (S,), and how many of them make a second.

    Raises:
        DataError: As in `AudioFile`.
    """
    with AudioFile(path, channel) as file:
        return file.read(start, stop), file.rate


def _decodable(path: str | Path) -> int:
    """Return how many frames can be decoded, in a damaged file to the next thousand."""
    status = os.stat(path)
    return _decoded(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _decoded(path: str, size: int, changed: int) -> int:
    """Decode once for as long as a file stays as it is."""
    count = 0
    with _Steady(_name(path)) as file:
        try:
            while found := len(file.read(_FEW, dtype="float32")):
                count += found
        except soundfile.LibsndfileError:
            pass
    return count


def check_rate(rate: int, path: str | Path) -> None:
    """Refuse samples a second that no sound has, with a `DataError`."""
    if not RATES[0] <= rate <= RATES[1]:
        expected = f"expected {RATES[0]} to {RATES[1]} samples a second, found {rate}"
        raise DataError(path, "rate", expected, "check the header, or give the true rate")


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DataError(path, "file", "no such file", "check the path") from None
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", "check the disk and permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(path, "file", "expected a sound, found a folder or device", "name a file")
    if status.st_size == 0:
        raise DataError(path, "file", "is empty (0 bytes)", _REPLACE)


def _no_sound(path: str | Path, error: soundfile.LibsndfileError) -> DataError:
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as refusal:
        return DataError(path, "file", f"cannot be read: {refusal.strerror}", "check the disk and permissions")
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return DataError(
            path, "file", f"is no sound: expected WAV, FLAC, OGG or MP3, found text ({head.decode()!r})", _REPLACE
        )
    return DataError(path, "header", f"is damaged, or that of no WAV, FLAC, OGG or MP3 ({_one_line(error)})", _REPLACE)


def _one_line(error: soundfile.LibsndfileError) -> str:
    return " ".join(error.error_string.split())
