"""Errors the operators raise: what was wrong, and what to do about it."""

from __future__ import annotations


class KernelInputError(ValueError):
    """An operator was given input it refuses.

    Args:
        message: The invariant that does not hold and the value that broke it.
        remedy: What the caller can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


class BackendError(RuntimeError):
    """The requested backend cannot run this operator on this device.

    Args:
        message: Which operator, backend and device.
        remedy: What the caller can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy
