"""Routes: in which orders a grid of tokens is read, and how the readings' results are merged."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mamba_kernels.errors import KernelInputError
from mamba_kernels.routes import orders
from mamba_kernels.routes.readings import Readings

MERGES = ("sum", "mean", "concat")
MAX_RANK = 3
_CACHE_LIMIT = 128

# Each entry: the orders of a shape, and how many there are for a rank. Windows are handled beside them, for they
# alone have a parameter and segments.
_ORDERS: dict[str, tuple[Callable[[tuple[int, ...]], list[np.ndarray]], Callable[[int], int]]] = {
    "forward": (orders.forward, lambda rank: 1),
    "bidirectional": (orders.bidirectional, lambda rank: 2),
    "cross": (orders.cross, lambda rank: 2 * rank),
    "snake": (orders.snake, lambda rank: 1),
}
NAMES = (*_ORDERS, "windowed")


@dataclass(frozen=True)
class Route:
    """The orders in which a grid is read, without a shape: hashable, to be kept in a model's configuration.

    - ``forward``: row-major, last axis fastest (one reading).
    - ``bidirectional``: row-major and its reverse (two).
    - ``cross``: each axis in turn is the fastest, the others keep their order; then the same paths reversed. In 2-D
      these are VMamba's four in VMamba's order (rows, columns, rows reversed, columns reversed); in 3-D six; in 1-D
      they are the two of ``bidirectional``.
    - ``snake``: boustrophedon, every step goes to a neighbour on the grid (one).
    - ``windowed``: window after window in row-major order, row-major inside each; the state starts afresh in each
      window (one). Where the window does not divide the grid the last windows of that axis are smaller.

    Args:
        name: One of the names above.
        merge: What becomes of the K results: their "sum", their "mean", or "concat" along the channels in the order
            of the readings.
        window: For ``windowed`` only: the window's size along each axis, or one number for every axis.

    Raises:
        KernelInputError: If a name is unknown, or the window is missing, not asked for, or not positive.

    Follows VMamba (arXiv 2401.10166) for ``cross``, PlainMamba (arXiv 2403.17695) for the continuous path and
    LocalMamba (arXiv 2403.09338) for windows.
    """

    name: str
    merge: str = "sum"
    window: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        _one_of("route", self.name, NAMES)
        _one_of("merge of a route", self.merge, MERGES)
        if self.name != "windowed":
            if self.window is not None:
                raise KernelInputError(
                    f"route {self.name!r} has no window, got window={self.window!r}", "leave it out, or use 'windowed'"
                )
            return
        if self.window is None:
            raise KernelInputError("route 'windowed' needs its window", "pass window=7 or window=(7, 7)")
        if isinstance(self.window, Sequence):
            object.__setattr__(self, "window", tuple(self.window))  # lists come from YAML and do not hash
        sizes = self.window if isinstance(self.window, tuple) else (self.window,)
        if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
            raise KernelInputError(
                f"window of a route must be of whole numbers from 1, got {self.window!r}", "pass e.g. window=(7, 7)"
            )
        if isinstance(self.window, tuple) and len(self.window) > MAX_RANK:
            raise KernelInputError(
                f"window {self.window!r} has {len(self.window)} axes; grids have 1 to {MAX_RANK}",
                "pass one size an axis",
            )

    def __repr__(self) -> str:
        options = f", merge={self.merge!r}" + ("" if self.window is None else f", window={self.window!r}")
        return f"Route({self.name!r}{options})"

    def count(self, rank: int) -> int:
        """Return K, the number of readings of a grid with ``rank`` axes (1 to 3)."""
        self._check_rank(rank)
        return 1 if self.name == "windowed" else _ORDERS[self.name][1](rank)

    def readings(self, shape: Sequence[int], device: torch.device | str | None = None) -> Readings:
        """Return this route's readings of a grid, built once per route, shape and device.

        Args:
            shape: Sizes of the grid's 1 to 3 axes, each at least 1.
            device: Where the index tensors lie; None for the CPU.

        Raises:
            KernelInputError: If the grid is empty, has too many axes or cells, or the window's rank differs.
        """
        shape = tuple(int(size) for size in shape)
        device = torch.device("cpu" if device is None else device)
        key = (self, shape, str(device))
        found = _cache.get(key)
        if found is None:
            found = self._build(shape, device)
            # Under a tracer the tensors are stand-ins that must not outlive it.
            if type(found.order) is torch.Tensor and not torch.compiler.is_compiling():
                while len(_cache) >= _CACHE_LIMIT:
                    _cache.pop(next(iter(_cache)), None)
                _cache[key] = found
        return found

    def _build(self, shape: tuple[int, ...], device: torch.device) -> Readings:
        self._check_rank(len(shape))
        if min(shape) < 1:
            raise KernelInputError(f"a route reads grids of at least one cell, got shape {shape}", "drop empty inputs")
        if np.prod(shape, dtype=np.float64) >= 2**31:
            raise KernelInputError(f"grid {shape} has 2^31 cells or more, past int32", "read it in parts")
        segment = None
        if self.name == "windowed":
            order, window_of_step = orders.windowed(shape, self._window(len(shape)))
            paths, segment = [order], torch.tensor(window_of_step[None], device=device)
        else:
            paths = _ORDERS[self.name][0](shape)
        order_KL = np.stack(paths).astype(np.int32)
        inverse_KL = np.argsort(order_KL, axis=1, kind="stable").astype(np.int32)
        return Readings(
            shape=shape,
            merge=self.merge,
            order=torch.tensor(order_KL, device=device),
            inverse=torch.tensor(inverse_KL, device=device),
            segment=segment,
            mirrored=len(paths) > 1,
        )

    def _window(self, rank: int) -> tuple[int, ...]:
        if not isinstance(self.window, tuple):
            assert self.window is not None  # noqa: S101  checked at construction; tells the type checker
            return (self.window,) * rank
        return self.window

    def _check_rank(self, rank: int) -> None:
        if not 1 <= rank <= MAX_RANK:
            raise KernelInputError(f"a route reads grids of 1 to {MAX_RANK} axes, got {rank}", "fold axes together")
        if isinstance(self.window, tuple) and len(self.window) != rank:
            raise KernelInputError(
                f"window {self.window} of a route has {len(self.window)} axes, the grid has {rank}",
                "give one size for each axis of the grid",
            )


_cache: dict[tuple[Route, tuple[int, ...], str], Readings] = {}


def _one_of(what: str, value: str, names: Sequence[str]) -> None:
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
    raise KernelInputError(f"unknown {what} {value!r}", remedy)
