"""Routes: in which orders a grid of tokens is read, and how the readings' results are merged."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mamba_kernels.errors import KernelInputError
from mamba_kernels.export import register_decomposition
from mamba_kernels.routes import orders
from mamba_kernels.routes.readings import Readings

MERGES = ("sum", "mean", "concat")
MAX_RANK = 3
_CACHE_LIMIT = 128

# Each entry: the orders of a shape, and how many there are for a rank. Windows are handled beside them, for they
# alone have a parameter and segments.
_ORDERS: dict[str, tuple[Callable[[tuple[int, ...]], list[Tensor]], Callable[[int], int]]] = {
    "forward": (orders.forward, lambda rank: 1),
    "bidirectional": (orders.bidirectional, lambda rank: 2),
    "axes": (orders.axes, lambda rank: rank),
    "cross": (orders.cross, lambda rank: 2 * rank),
    "snake": (orders.snake, lambda rank: 1),
}
NAMES = (*_ORDERS, "windowed")


@dataclass(frozen=True)
class Route:
    """The orders in which a grid is read, without a shape: hashable, to be kept in a model's configuration.

    - ``forward``: row-major, last axis fastest (one reading).
    - ``bidirectional``: row-major and its reverse (two).
    - ``axes``: each axis in turn is the fastest, the last one first, and the others keep their order (one an axis: the
      rows, columns and slices of a volume, each read forwards).
    - ``cross``: the paths of ``axes``; then the same paths reversed. In 2-D
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
        device = torch.device("cpu" if device is None else device)
        shape, widths = tuple(shape), self.widths(len(shape))
        if torch.compiler.is_dynamo_compiling():
            return self.readings_in_graph(shape, device)
        shape = tuple(int(size) for size in shape)
        key = (self, shape, str(device))
        found = _cache.get(key)
        if found is None:
            # Tensors made in inference mode could not be used in a graph later.
            with torch.inference_mode(False):
                found = self._wrap(shape, *_index_tensors(self.name, widths, shape, device))
                _ = found.marks  # made now, not at its first use, which may be within a capture
            # Under a tracer the tensors are stand-ins that must not outlive it; what is made while a CUDA graph is
            # captured lies in the graph's memory, and is filled when that is replayed.
            captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            if type(found.order) is torch.Tensor and not captured:
                while len(_cache) >= _CACHE_LIMIT:
                    _cache.pop(next(iter(_cache)), None)
                _cache[key] = found
        return found

    def readings_in_graph(self, shape: Sequence[int], device: torch.device) -> Readings:
        """Return the readings as one node of a graph that is being made, rather than as constants in it.

        The sizes may stay symbolic, and a decomposition may ask for them.
        """
        shape = tuple(shape)
        order, inverse, segment = index_tensors(self.name, self.widths(len(shape)), shape, device)
        return self._wrap(shape, order, inverse, segment)

    def widths(self, rank: int) -> tuple[int, ...]:
        """Return the window's size along each of ``rank`` axes; empty for the routes that have none."""
        self._check_rank(rank)
        if self.window is None:
            return ()
        return self.window if isinstance(self.window, tuple) else (self.window,) * rank

    def _wrap(self, shape: tuple[int, ...], order: Tensor, inverse: Tensor, segment: Tensor) -> Readings:
        return Readings(
            shape=shape,
            merge=self.merge,
            order=order,
            inverse=inverse,
            segment=segment if self.name == "windowed" else None,
            mirrored=self.name in ("bidirectional", "cross"),
            row_major=self.name in ("forward", "bidirectional", "axes", "cross"),
        )

    def _check_rank(self, rank: int) -> None:
        if not 1 <= rank <= MAX_RANK:
            raise KernelInputError(f"a route reads grids of 1 to {MAX_RANK} axes, got {rank}", "fold axes together")
        if isinstance(self.window, tuple) and len(self.window) != rank:
            raise KernelInputError(
                f"window {self.window} of a route has {len(self.window)} axes, the grid has {rank}",
                "give one size for each axis of the grid",
            )


_cache: dict[tuple[Route, tuple[int, ...], str], Readings] = {}


def _index_tensors(
    name: str, widths: Sequence[int], shape: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order, its inverse and the segments (0, 0) or (K, L) of a route on a grid, all int32."""
    shape = tuple(shape)
    if min(shape) < 1:
        raise KernelInputError(f"a route reads grids of at least one cell, got shape {shape}", "drop empty inputs")
    if math.prod(shape) >= 2**31:
        raise KernelInputError(f"grid {shape} has 2^31 cells or more, past int32", "read it in parts")
    segment = torch.zeros(0, 0, dtype=torch.int64, device="cpu")
    if name == "windowed":
        path, window_of_step = orders.windowed(shape, tuple(widths))
        paths, segment = [path], window_of_step[None]
    else:
        paths = _ORDERS[name][0](shape)
    order_KL = torch.stack(paths)
    order, inverse, segment = (
        part.to(device=device, dtype=torch.int32) for part in (order_KL, order_KL.argsort(dim=1), segment)
    )
    return order, inverse, segment


@torch.library.custom_op("mamba_kernels::route_index_tensors", mutates_args=())
def index_tensors(
    name: str, widths: Sequence[int], shape: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a route's index tensors inside a compiled graph, which may overwrite what it gets."""
    return _index_tensors(name, widths, shape, device)


@index_tensors.register_fake
def _(name: str, widths: Sequence[int], shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    length = math.prod(shape)
    count = 1 if name == "windowed" else _ORDERS[name][1](len(shape))
    segments = (1, length) if name == "windowed" else (0, 0)
    order, inverse, segment = (
        torch.empty(size, dtype=torch.int32, device=device) for size in ((count, length), (count, length), segments)
    )
    return order, inverse, segment


register_decomposition(index_tensors)(_index_tensors)


def _one_of(what: str, value: str, names: Sequence[str]) -> None:
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
    raise KernelInputError(f"unknown {what} {value!r}", remedy)
