"""What a sound file's header says of its length, where libsndfile would quietly make do with less."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_UNKNOWN, _UNKNOWN_64 = 2**32 - 1, 2**64 - 1
# PCM, floats, A-law, mu-law and the extensible form of these: a block is a frame.
_PLAIN = (1, 3, 6, 7, 0xFFFE)
# An Ogg page is at most this long.
_PAGE = 65_307
_LAST_PAGE = 4


def missing_part(file: BinaryIO) -> str:
    """Return what is missing at the end of a WAV or Ogg file; empty where nothing is, or nothing can be told.

    A WAV that was written to a pipe does not know its length; it ends where the file does.
    """
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _missing_wav(file)
    return _missing_ogg(file) if head[:4] == b"OggS" else ""


def _missing_wav(file: BinaryIO) -> str:
    end = os.fstat(file.fileno()).st_size
    tag, block, long_size = 0, 1, _UNKNOWN
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        start = file.tell()
        if name == b"fmt " and size >= 16:
            tag, block = struct.unpack("<H10xH", file.read(14))
        elif name == b"ds64" and size >= 16:
            (long_size,) = struct.unpack("<8xQ", file.read(16))
        elif name == b"data":
            size = long_size if size == _UNKNOWN else size
            if size in (_UNKNOWN, _UNKNOWN_64) or start + size <= end or not block:
                return ""
            what = "frames" if tag in _PLAIN else "blocks"
            return f"its header claims {size // block} {what}, {(end - start) // block} are there"
        file.seek(start + size + size % 2)
    return ""


def _missing_ogg(file: BinaryIO) -> str:
    file.seek(0, os.SEEK_END)
    # the last whole page, and one after it that is not whole
    file.seek(max(0, file.tell() - 2 * _PAGE))
    tail = file.read()
    page = tail.rfind(b"OggS")
    while page >= 0 and not _is_whole(tail, page):
        page = tail.rfind(b"OggS", 0, page)
    if page >= 0 and tail[page + 5] & _LAST_PAGE:
        return ""
    return "it ends before the end of the page that is marked as its last"


def _is_whole(tail: bytes, page: int) -> bool:
    """Tell whether a page that begins there also ends before the file does."""
    if page + 27 > len(tail) or tail[page + 4] != 0:  # the format's version
        return False
    segments = tail[page + 26]
    end = page + 27 + segments
    return end + sum(tail[end - segments : end]) <= len(tail)
