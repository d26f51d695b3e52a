"""SIGTERM ends a command as Ctrl-C does: temporary folders are removed, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# what a shell reports for a process ended by SIGTERM
TERMINATED = 143


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the block, where this is the main thread and nobody else handles it."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    before = signal.signal(signal.SIGTERM, _Stop(os.getpid()))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_as_ever() -> None:
    """Give SIGTERM its default back, for a process that waits for others: it may wait where no handler of ours runs."""
    if any(isinstance(one, _Stop) for one in _handlers()):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stop_at_once() -> None:
    """Take SIGTERM back from Lightning, which only ever looks at it between the batches of a training."""
    handler = next((one for one in _handlers() if isinstance(one, _Stop)), None)
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _handlers() -> list[object]:
    """Return the handler that is set, or those that Lightning called it together with its own."""
    handler = signal.getsignal(signal.SIGTERM)
    return list(getattr(handler, "signal_handlers", [handler]))


class _Stop:
    """The handler.

    Args:
        process: The process that it is for; one that is forked from it inherits it, and ends as it would without.
    """

    def __init__(self, process: int) -> None:
        self._process = process

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif signal.getsignal(signum) is self:  # else a training was told, which first saves what it has
            raise SystemExit(TERMINATED)
