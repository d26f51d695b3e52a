"""How far work on many files is, on stderr: a bar on a terminal, in a log a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Result = TypeVar("Result")


def followed(results: Iterable[Result], doing: str, total: int, *, every_seconds: float = 30.0) -> Iterator[Result]:
    """Yield results as they come, and say how far they are.

    Args:
        results: The results.
        doing: What is being done, as the bar or the line begins.
        total: How many there will be.
        every_seconds: The least time between two lines of a log, and before the first: short work says nothing.

    Yields:
        The results.
    """
    if sys.stderr.isatty():
        yield from track(results, doing, total, console=Console(stderr=True), transient=True)
        return
    began = said = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - said >= every_seconds and number < total:
            said = now
            print(f"{doing}: {number:,} of {total:,} · {clock(now - began)}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
