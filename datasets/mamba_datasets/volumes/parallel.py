"""Work on volumes a few at a time: each takes several times its size in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from mamba_datasets.cores import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORKERS = 4


def in_turn(
    work: Callable[[Item], Result], items: Sequence[Item], *, doing: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield what the work makes of each item, in order, with a progress bar where stderr is a terminal.

    The first exception ends it, after the items that are being worked on.

    Args:
        work: What to do with an item; runs in threads, as reading and resampling leave Python's lock alone.
        items: The items.
        doing: What the bar says.
        workers: How many at a time; None takes 4, or as many as there are cores for this process.

    Yields:
        The results.
    """
    executor = ThreadPoolExecutor(workers or min(_WORKERS, usable_cores()))
    hidden = not sys.stderr.isatty()
    try:
        results = executor.map(work, items)
        yield from track(results, doing, len(items), console=Console(stderr=True), transient=True, disable=hidden)
    finally:
        executor.shutdown(cancel_futures=True)
