"""Whether a benchmark's figures are worse than saved ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mamba_apps.errors import UserError

# The exit code of a benchmark that found something slower or larger than before.
REGRESSION = 3
FIGURES = (
    "forward_ms",
    "forward_backward_ms",
    "gpu_forward_ms",
    "gpu_forward_backward_ms",
    "peak_extra_mib",
    "median_ms",
    "peak_above_idle_mib",
    "training_ms",
    "training_peak_mib",
    "inference_ms",
    "inference_peak_mib",
    "step_ms",
    "prefill_ms",
    "peak_mib",
    "forward_extra_mib",
    "forward_backward_extra_mib",
)
# Differences below these are noise, whatever part they are of a small figure.
SLACK = {"ms": 0.003, "mib": 1.0}
_IDENTITY = ("op", "case", "shape", "layout", "by", "mode", "batch")


def read_saved(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a saved benchmark that can be compared with ``document``, of the same kind and GPU.

    Raises:
        UserError: If the file is none, or was measured on something else.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rows, kind = saved["rows"], (saved["bench"], saved["device"])
        gpus = saved["environment"].get("gpus")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no saved benchmark ({_reason(error)})", "give a file that --out wrote") from error
    if kind != (document["bench"], document["device"]):
        raise UserError(f"{path} is of `bench {kind[0]}` on {kind[1]}", "compare with one of the same kind")
    if document["device"] == "cuda" and gpus != document["environment"].get("gpus"):
        raise UserError(f"{path} was measured on {gpus}", "compare with one of this GPU")
    return rows


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):  # its text holds the whole file
        return "it is no text"
    return f"{type(error).__name__}: {error}"


def regressions(rows: list[dict[str, Any]], saved: list[dict[str, Any]], tolerance: float) -> list[str]:
    """Return a line for each of our figures that is worse than the saved one by more than ``tolerance`` of it.

    Raises:
        UserError: If the two have no case in common.
    """
    before = {_identity(row): row for row in saved if row.get("by", "ours") == "ours"}
    common = [(row, before[_identity(row)]) for row in rows if _identity(row) in before]
    if not common:
        raise UserError("the saved benchmark has none of these cases", "compare with one that has, or change --only")
    found = []
    for row, old in common:
        for name in FIGURES:
            if name not in row or name not in old:
                continue
            unit = name.rsplit("_", 1)[1]
            if row[name] > old[name] * (1 + tolerance) + SLACK[unit]:
                words = " ".join(str(part) for part in _identity(row) if part is not None)
                found.append(f"{words}: {name} was {old[name]:.4g}, is {row[name]:.4g}")
    return found


def fraction(text: str) -> float:
    """Read "10%" or "0.1" as 0.1.

    Raises:
        ValueError: If it is neither, or negative.
    """
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(row[key]) if isinstance(row.get(key), list | tuple) else row.get(key) for key in _IDENTITY)
