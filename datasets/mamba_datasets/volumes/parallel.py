"""Work on volumes a few at a time: each takes several times its size in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mamba_datasets.cores import usable_cores
from mamba_datasets.progress import followed

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORKERS = 4


def in_turn(
    work: Callable[[Item], Result], items: Sequence[Item], *, doing: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield what the work makes of each item, in order, and say on stderr how far that is.

    The first exception ends it, after the items that are being worked on.

    Args:
        work: What to do with an item; runs in threads, as reading and resampling leave Python's lock alone.
        items: The items.
        doing: What is said that is being done.
        workers: How many at a time; None takes 4, or as many as there are cores for this process.

    Yields:
        The results.
    """
    executor = ThreadPoolExecutor(workers or min(_WORKERS, usable_cores()))
    try:
        yield from followed(executor.map(work, items), doing, len(items))
    finally:
        executor.shutdown(cancel_futures=True)
