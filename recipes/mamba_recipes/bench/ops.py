"""The benchmark's parent: one fresh process a case, so that memory peaks and warm caches do not mix."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable

SCAN_SHAPES = ((8, 512, 256, 16), (32, 96, 256, 16), (2, 4096, 128, 16))  # B, L, D, N
CONV_SHAPES = ((8, 512, 256, 4), (2, 4096, 128, 4))  # B, L, D, W
NORM_SHAPES = ((16384, 256),)  # rows, width


def cases() -> list[dict[str, object]]:
    """Return every case: the operator, the implementation that runs it, and its shape."""
    rivals = ["ours", "mambapy"] if importlib.util.find_spec("mambapy") else ["ours"]
    found: list[dict[str, object]] = []
    for shape in SCAN_SHAPES:
        found += [{"op": "selective_scan", "by": by, "shape": shape} for by in rivals]
    for shape in CONV_SHAPES:
        found += [{"op": "causal_conv1d", "by": by, "shape": shape} for by in ("ours", "torch")]
    for norm_shape in NORM_SHAPES:
        found += [{"op": "rms_norm", "by": by, "shape": norm_shape} for by in ("ours", "torch")]
    return found


def run_case(case: dict[str, object], *, threads: int, repeats: int) -> dict[str, object]:
    """Run one case in a fresh process and return its row.

    Raises:
        RuntimeError: If the process fails; the message ends with what it printed.
    """
    job = json.dumps({**case, "threads": threads, "repeats": repeats})
    # OpenMP and BLAS read these before torch can be told; a benchmark that names its threads must mean all of them.
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "mamba_recipes.bench.worker", job],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the benchmark of {job} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(*, threads: int, repeats: int, talk: Callable[[str], None]) -> list[dict[str, object]]:
    """Run every case, one after another, telling each before it starts."""
    if not importlib.util.find_spec("mambapy"):
        talk("mambapy is not installed, so the scan has no rival here: pip install mambapy==1.2.0")
    rows = []
    for case in cases():
        talk(f"{case['op']} {case['shape']} by {case['by']}")
        rows.append(run_case(case, threads=threads, repeats=repeats))
    return rows
