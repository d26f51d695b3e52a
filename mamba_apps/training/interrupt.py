"""Ctrl-C that waits for the moment at which a run can be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_NOTICE = b"\ninterrupted: stopping at the end of this step (Ctrl-C again stops at once and saves nothing)\n"


class StopRequestedError(BaseException):
    """Ctrl-C was pressed; raised where the run is saved. Not an Exception, so that nothing swallows it."""


class Interrupt:
    """Turn the first SIGINT into a request and the second into a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def install(self) -> None:
        """Take over SIGINT, where this is the main thread and nobody else handles it."""
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before = signal.signal(signal.SIGINT, self._on_signal)

    def uninstall(self) -> None:
        """Give SIGINT back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, _NOTICE)  # a handler must not use the buffered stderr, which it may have interrupted
