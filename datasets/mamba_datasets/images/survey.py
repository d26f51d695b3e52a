"""What a check learns of many images: each decoded and hashed once, in threads, and then told in a few lines."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from mamba_datasets.errors import DataError
from mamba_datasets.images.read import REPLACE, load_image, read_bytes, to_mode

Item = TypeVar("Item")
Result = TypeVar("Result")

TINY = 8
_SHOWN = 5
_BLOCK = 512
_CHUNK = 16


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


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what the work makes of each item, in order, with a progress bar where stderr is a terminal."""

    def results() -> Iterator[Result]:
        with ThreadPool(min(32, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), _BLOCK):  # a block at a time: no more than that waits in memory
                yield from pool.map(work, items[start : start + _BLOCK], chunksize=_CHUNK)

    hidden = not sys.stderr.isatty()
    yield from track(results(), "checking", len(items), console=Console(stderr=True), transient=True, disable=hidden)


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
        notes.append(f"{len(tiny)} {have} a side below {TINY} pixels: {_some(tiny)}")
    return notes


def describe_copies(facts: Iterable[Facts], group: Callable[[Facts], tuple[str, str]]) -> list[str]:
    """Tell which usable files have the same content.

    Args:
        facts: The files.
        group: The split and class of a file.

    Returns:
        A line each for copies in one class, in several classes and in several splits.
    """
    by_content: dict[bytes, list[Facts]] = defaultdict(list)
    for fact in facts:
        if fact.error is None:
            by_content[fact.digest].append(fact)
    copies: dict[str, list[str]] = defaultdict(list)
    for same in by_content.values():
        if len(same) == 1:
            continue
        splits, classes = ({group(fact)[part] for fact in same} for part in (0, 1))
        where = "several splits" if len(splits) > 1 else "several classes" if len(classes) > 1 else "one class twice"
        copies[where].append(" = ".join(fact.path for fact in same[:2]))
    return [
        f"{len(pairs)} {'content is' if len(pairs) == 1 else 'contents are'} in {where}: {_some(pairs)}"
        for where, pairs in copies.items()
    ]


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _some(words: list[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", …" if len(words) > _SHOWN else "")
