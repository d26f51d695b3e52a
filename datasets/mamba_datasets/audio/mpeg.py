"""The length of MP3s that do not say it: a decoder guesses from size and bit rate; here their frames are counted."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

# Kilobits a second of layer III, by the header's index: MPEG-1, and the lower rates of MPEG-2 and 2.5.
_KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
# How far from the beginning the first frame may lie, after ID3's pictures.
_GLANCE = 2**16
LONGEST_FRAME = 1152
"""The most samples that a frame holds."""


def counted_frames(path: str | Path) -> int | None:
    """Return how many samples of each channel an MP3 holds; None where its first frame says so, or there is none.

    Args:
        path: The file.
    """
    status = os.stat(path)
    return _counted(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _counted(path: str, size: int, changed: int) -> int | None:
    """Count once for as long as a file stays as it is: hours take a moment."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        frames = _frames(data, _tag_size(file))
        first = next(frames, None)
        if first is None or any(name in data[slice(*first[:2])] for name in _LENGTH_TAGS):
            return None
        return first[2] + sum(samples for _, end, samples in frames if end <= size)


def _tag_size(file: BinaryIO) -> int:
    """Return the size of the ID3 tag that a file begins with, whose digits have seven bits."""
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _frames(data: mmap.mmap, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each frame begins and ends, and its samples, from the first one that another one follows."""
    for first in range(start, min(start + _GLANCE, len(data))):
        frame = _frame(data[first : first + 4])
        if frame is not None and _frame(data[first + frame[0] : first + frame[0] + 4]) is not None:
            start = first
            break
    while (frame := _frame(data[start : start + 4])) is not None:
        yield start, start + frame[0], frame[1]
        start += frame[0]


@lru_cache(maxsize=256)
def _frame(header: bytes) -> tuple[int, int] | None:
    """Return the bytes and samples of the frame of a header; None if it is no frame's."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync, layer III
        return None
    version, index, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version not in _RATES or rate == 3 or not 0 < index < 15:
        return None
    samples = 1152 if version == 3 else 576
    size = samples // 8 * 1000 * _KILOBITS[version == 3][index] // _RATES[version][rate] + (header[2] >> 1 & 1)
    return size, samples
