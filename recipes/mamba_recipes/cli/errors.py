"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import errno
import re
import sys
import traceback

DONE = 0
FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130

_PATH_TROUBLE = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ELOOP: "check the path",
    errno.ENAMETOOLONG: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose another place with --out",
    errno.ENOSPC: "free some space or choose another place with --out",
    errno.EDQUOT: "free some space or choose another place with --out",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
# What PyTorch says where the memory is at an end, what that means, and the remedy; the first that is found counts.
_MEMORY_TROUBLE = (
    (
        r"(?:out of|insufficient) shared memory|shared memory object|unable to (?:mmap|write to file) </torch",
        "the processes that read data have too little shared memory (/dev/shm)",
        "read in this one (--data.workers 0), or give more (docker run --shm-size 8g)",
    ),
    (
        r"DataLoader worker .*(?:killed by signal: Killed|exited unexpectedly)",
        "a process that reads data was ended by the system, which happens when memory runs out",
        "use fewer of them (--data.workers 0) or smaller batches (--data.batch_size)",
    ),
    (
        r"out of memory|can't allocate memory|not enough memory",
        "out of memory",
        "make the batches (--data.batch_size), the model or the input smaller",
    ),
)


def exit_code(error: BaseException) -> int:
    """Return the code that ``error`` ends the command with: 2 where the person can mend it, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if hasattr(error, "remedy") or _path_remedy(error) is not None or _memory_line(error) is not None:
        return WRONG_INPUT
    return FAILED


def one_line(error: BaseException) -> str:
    """Return what went wrong and what to do about it, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    remedy = _path_remedy(error)
    if hasattr(error, "remedy"):
        text = str(error)
    elif remedy is not None and isinstance(error, OSError):
        text = f"{error.filename or 'the output'}: {error.strerror}; {remedy}"
    elif (trouble := _memory_line(error)) is not None:
        text = trouble
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())


def say(error: BaseException, *, debug: bool) -> int:
    """Write ``error`` to stderr as one line (with ``debug``, after its traceback) and return its exit code."""
    code = exit_code(error)
    if debug and code != INTERRUPTED:
        traceback.print_exception(error, file=sys.stderr)
    line = one_line(error)
    if code == FAILED:
        hint = "" if debug else "; this is not your fault: run again with --debug and report the traceback"
        line = f"internal error: {line}{hint}"
    elif code == WRONG_INPUT:
        line = f"error: {line}"
    print(f"mamba-apps: {line}", file=sys.stderr, flush=True)
    return code


def _path_remedy(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and error.errno not in _FULL:  # a disk is full also for a stream, such as stdout
        return None
    return _PATH_TROUBLE.get(error.errno)


def _memory_line(error: BaseException) -> str | None:
    """Return what to say where ``error`` tells that the memory is at an end, which has no class of its own on a CPU."""
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    text = f"out of memory {error}" if isinstance(error, MemoryError) else str(error)
    for pattern, what, remedy in _MEMORY_TROUBLE:
        if re.search(pattern, text, re.DOTALL):
            wanted = re.search(
                r"tried to allocate ([\d.]+ ?\w+)|allocate ([\d.]+ \w+) for an array", text, re.IGNORECASE
            )
            amount = f" ({wanted[1] or wanted[2]} more were needed)" if wanted else ""
            return f"{what}{amount}; {remedy}"
    return None
