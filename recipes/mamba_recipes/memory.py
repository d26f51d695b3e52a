"""How much memory this process takes now, and the most it ever took."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_mib() -> float:
    """Return the memory resident in this process now, in MiB (elsewhere than on Linux: its peak so far)."""
    return _status("VmRSS") if _STATUS.exists() else _rusage_peak_mib()


def peak_mib() -> float:
    """Return the most memory that was ever resident in this process, in MiB."""
    return _status("VmHWM") if _STATUS.exists() else _rusage_peak_mib()


def forget_peak() -> None:
    """Set this process's peak to what is resident now, where the system can; elsewhere the peak stays the process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def release_free() -> None:
    """Give memory that was freed back to the system, so that it does not hide what is taken next (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _status(field: str) -> float:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _rusage_peak_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
