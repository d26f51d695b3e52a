"""Choosing among a few configurations of a kernel: a wrong one never, the fastest where that may be measured.

Some compilers turn some configurations of matrix kernels into wrong code, so each is checked on a small fixed problem
before it may run, once for each GPU, Triton version, kernel source and class of shapes. Verdicts and timings are kept
in ``$MAMBA_KERNELS_CACHE``, or ``mamba-apps/choices`` in the user's cache directory; what cannot be kept there is
found again by the next process.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from mamba_kernels.errors import BackendError

S = TypeVar("S", bound=tuple)
C = TypeVar("C")
VARIABLE = "MAMBA_KERNELS_CACHE"
MOST_CANDIDATES = 3
_log = logging.getLogger(__name__)


class _Findings(NamedTuple):
    """What is known of each candidate: whether it is right, and its milliseconds (None before they are measured)."""

    right: list[bool]
    milliseconds: list[float] | None

    def best(self) -> int | None:
        """Return the index of the fastest right candidate, or the first right one where nothing was measured."""
        usable = [i for i, right in enumerate(self.right) if right]
        times = self.milliseconds
        return min(usable, key=lambda i: 0.0 if times is None else times[i], default=None)


class Choice(Generic[S, C]):
    """A kernel's configurations, of which a call with a class of shapes and a GPU returns the one to run.

    Args:
        name: The kernel's name, for the cache and for errors.
        kernels: The Triton or Gluon functions whose sources the verdicts belong to. So do the sources in the folder of
            ``check``: what plans the launches decides constants that are compiled.
        candidates: Returns at most three configurations for a class of shapes, the default first; they are written and
            compared by their ``repr``.
        check: Runs a configuration on a small fixed problem of a class of shapes, with the compile-time constants the
            real one would have, and returns whether it agrees with the reference. It is called from several threads at
            a time, so that candidates compile in parallel, and may raise: what fails is not chosen.
    """

    def __init__(
        self,
        name: str,
        kernels: Sequence[Any],
        candidates: Callable[[S], Sequence[C]],
        check: Callable[[S, C, torch.device], bool],
    ) -> None:
        self._name, self._kernels, self._candidates, self._check = name, kernels, candidates, check
        self._settled: dict[Any, C] = {}
        self._lock = threading.Lock()

    def __call__(self, shapes: S, device: torch.device, time: Callable[[C], float] | None = None) -> C:
        """Return the configuration to run.

        While a CUDA graph is captured or a compiler traces nothing is checked or measured: a configuration known to be
        right is returned, and where nothing is known the call is refused. With deterministic algorithms it is the first
        right one, which depends on the shapes and the GPU alone.

        Args:
            shapes: The class of shapes: numbers, strings and None.
            device: The GPU it is for.
            time: Returns a configuration's milliseconds, as `gpu_milliseconds` does; None to take the first right one.

        Raises:
            BackendError: If no configuration is right, or none is known to be and nothing may be checked now.
        """
        timed = time is not None and not torch.are_deterministic_algorithms_enabled()
        key = (shapes, device, timed)
        found = self._settled.get(key)
        if found is not None:
            return found
        candidates = self._candidates(shapes)
        if not 1 <= len(candidates) <= MOST_CANDIDATES:
            raise ValueError(f"{self._name}: 1 to {MOST_CANDIDATES} candidates are allowed, got {len(candidates)}")
        if _only_looking(device):
            findings = _read(*self._file(shapes, device, candidates))
            known = None if findings is None else findings.best()
            if known is None:
                raise BackendError(
                    f"{self._name}: no configuration of the kernel has been checked yet for {tuple(shapes)}, and none "
                    "can be while a CUDA graph is captured or a tracer looks on",
                    "run the model once on inputs of these shapes before, with its backward pass if it trains",
                )
            return candidates[known]
        with self._lock:
            best = self._find(shapes, device, candidates, time if timed else None).best()
        if best is None:
            raise BackendError(
                f"{self._name}: no configuration of the kernel gives right results on {_gpu_name(device)} with "
                f"Triton {_triton_version()} for {shapes}",
                "pass backend='reference', or install another version of Triton",
            )
        self._settled[key] = candidates[best]
        return candidates[best]

    def _find(
        self, shapes: S, device: torch.device, candidates: Sequence[C], time: Callable[[C], float] | None
    ) -> _Findings:
        """Return what is known, or must be, of the candidates, and keep it."""
        file, key = self._file(shapes, device, candidates)
        known = _read(file, key)
        if known is not None and (time is None or known.milliseconds is not None):
            return known if time is not None else known._replace(milliseconds=None)
        if known is None:
            with ThreadPoolExecutor(len(candidates)) as threads:
                right = list(threads.map(lambda c: self._is_right(shapes, c, device), candidates))
        else:
            right = known.right
        milliseconds = None
        if time is not None and any(right):
            milliseconds = [time(c) if ok else float("inf") for c, ok in zip(candidates, right, strict=True)]
        findings = _Findings(right, milliseconds)
        # Another process may have measured meanwhile: the same kernels in all of them.
        theirs = _read(file, key) if milliseconds is not None else None
        if theirs is not None and theirs.milliseconds is not None:
            return theirs
        if any(right):
            _write(file, key, findings)
        return findings

    def _is_right(self, shapes: S, candidate: C, device: torch.device) -> bool:
        on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with on_device, torch.no_grad():  # Both are a thread's own.
                right = bool(self._check(shapes, candidate, device))
        except torch.OutOfMemoryError:  # Says nothing about the candidate.
            raise
        except Exception as error:
            if "out of memory" in str(error):  # Nor does a module that finds no room.
                raise
            _log.warning("%s: configuration %r cannot run and is not used: %s", self._name, candidate, error)
            return False
        if not right:
            _log.warning("%s: configuration %r gives wrong results and is not used", self._name, candidate)
        return right

    def _file(self, shapes: S, device: torch.device, candidates: Sequence[C]) -> tuple[Path, dict[str, Any]]:
        """Return the cache's file for a choice, and all that it depends on."""
        key = {
            "kernel": self._name,
            "gpu": _gpu_name(device),
            "triton": _triton_version(),
            "source": self._source(),
            "shapes": list(shapes),
            "candidates": [repr(c) for c in candidates],
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return cache_directory() / f"{self._name}-{digest}.json", key

    def _source(self) -> str:
        """Return a hash of the kernels' sources, and of what checks them and plans their launches, in one folder."""
        parts = [kernel.cache_key for kernel in self._kernels]
        folder = Path(inspect.getfile(self._check)).parent
        parts += [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cache_directory() -> Path:
    """Return where choices are kept; it need not exist."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG's variables has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "mamba-apps" / "choices"


def gpu_milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the median GPU time of a launch on the current stream, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def _only_looking(device: torch.device) -> bool:
    """Return whether nothing may run now but what is recorded: in a CUDA graph's capture, or under a tracer."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _triton_version() -> str:
    import triton

    return triton.__version__


def _read(file: Path, key: dict[str, Any]) -> _Findings | None:
    """Return what a file holds, or None where it is missing, damaged or of another choice."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        right, milliseconds = document["right"], document["milliseconds"]
        count = len(key["candidates"])
        fits = (
            document["key"] == key
            and len(right) == count
            and all(isinstance(ok, bool) for ok in right)
            and (milliseconds is None or (len(milliseconds) == count and all(ms >= 0 for ms in milliseconds)))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _Findings(right, milliseconds) if fits else None


def _write(file: Path, key: dict[str, Any], findings: _Findings) -> None:
    """Write what was found so that a reader sees all of it or nothing; a directory that refuses is left alone."""
    text = json.dumps({"key": key, **findings._asdict()}, indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        _log.info("choices are not kept: %s", error)
