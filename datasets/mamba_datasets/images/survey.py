"""What a check learns of many images: each decoded and hashed once, and then told in a few lines."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mamba_datasets.errors import DataError
from mamba_datasets.images.read import REPLACE, load_image, read_bytes, to_mode
from mamba_datasets.survey import some

TINY = 8
_SHOWN = 5


@dataclass(frozen=True)
class Facts:
    """What is known of one file.

    Args:
        path: The file.
        size: Width and height in pixels, upright.
        mode: Pillow's mode, as the file has it.
        digest: A hash of the file's content.
        error: What keeps it from being used; the other facts are then empty.
    """

    path: str
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: bytes = b""
    error: DataError | None = None


def inspect_image(path: str) -> Facts:
    """Decode one image as training would."""
    try:
        content = read_bytes(path)
        image = load_image(io.BytesIO(content), path)
        mode = image.mode
        to_mode(image, path)
        if min(image.size) == 1:
            width, height = image.size
            raise DataError(path, "size", f"{width}x{height} pixels hold no picture", REPLACE)
    except DataError as error:
        return Facts(path, error=error)
    return Facts(path, image.size, mode, hashlib.blake2b(content, digest_size=16).digest())


def describe(facts: Iterable[Facts]) -> list[str]:
    """Tell the sizes and modes of usable images."""
    usable = [fact for fact in facts if fact.error is None]
    if not usable:
        return []
    sizes = Counter(fact.size for fact in usable)
    if len(sizes) <= _SHOWN:
        told = ", ".join(f"{_times(size)} ({count})" for size, count in sizes.most_common())
    else:
        by_area = sorted((fact.size for fact in usable), key=lambda size: size[0] * size[1])
        small, middle, large = (_times(by_area[index]) for index in (0, len(by_area) // 2, -1))
        told = f"{small} to {large}, the middle one {middle}"
    modes = ", ".join(f"{mode} ({count})" for mode, count in Counter(fact.mode for fact in usable).most_common())
    notes = [f"sizes: {told}", f"modes: {modes}"]
    tiny = [fact.path for fact in usable if min(fact.size) < TINY]
    if tiny:
        have = "image has" if len(tiny) == 1 else "images have"
        notes.append(f"{len(tiny)} {have} a side below {TINY} pixels: {some(tiny)}")
    return notes


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
