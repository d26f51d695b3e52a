"""What the inputs of a scan along a route must be; every refusal names the invariant, the value and the remedy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.checks import FLOATS, cast_for_autocast, require, require_device, require_float, require_shape
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.route import Route

NAME = "selective_scan_route"


class RouteDims(NamedTuple):
    """The sizes that the inputs agree on, and whether all readings share x."""

    batch: int
    K: int
    grid: tuple[int, ...]
    D: int
    N: int
    shared: bool


def cast_route_inputs(*parts: Tensor | None) -> tuple[Any, ...]:
    """Return x, delta, B, C, z and delta_weight as autocast wants them; the other inputs keep their dtype."""
    return tuple(None if part is None else cast_for_autocast(part) for part in parts)


@per_layout
def check_route_inputs(
    op: str,
    route: Route,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    out_dtype: torch.dtype | None,
) -> RouteDims:
    """Return the sizes of checked inputs.

    Raises:
        KernelInputError: If the inputs do not fit each other or the route.
    """
    require(isinstance(route, Route), f"{op}: route must be a Route, got {route!r}", "pass e.g. Route('cross')")
    named = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    for name, tensor in {**named, "delta_weight": delta_weight}.items():
        if tensor is not None:
            require_float(op, name, tensor)
            require_device(op, name, tensor, x.device)
    require(
        out_dtype is None or out_dtype in FLOATS,
        f"{op}: out_dtype must be a real floating point dtype, got {out_dtype}",
        "pass torch.float32, torch.bfloat16, torch.float16 or None",
    )
    rank = delta.dim() - 3
    require(
        1 <= rank <= 3,
        f"{op}: delta must be (B, K, *grid, D) with a grid of 1 to 3 axes, got shape {tuple(delta.shape)}",
        "give each reading its own delta, after the batch dimension",
    )
    require(
        x.dim() in (rank + 2, rank + 3),
        f"{op}: x must be (B, *grid, D), or (B, K, *grid, D), with the {rank} grid axes of delta, got {tuple(x.shape)}",
        "flatten or unflatten x to the grid",
    )
    shared = x.dim() == rank + 2
    batch, K, grid, channels = x.shape[0], route.count(rank), tuple(x.shape[-rank - 1 : -1]), x.shape[-1]
    require(
        batch > 0 and channels > 0 and all(size > 0 for size in grid),
        f"{op}: x of shape {tuple(x.shape)} is empty",
        "skip empty inputs",
    )
    require(
        delta.shape[1] == K,
        f"{op}: {route!r} reads a grid of {rank} axes in {K} ways, delta has {delta.shape[1]}",
        "give delta, B and C one slice per reading in dimension 1",
    )
    if not shared:
        require_shape(op, "x", x, (batch, K, *grid, channels), "(B, K, *grid, D)")
    require(A.dim() == 2 and A.shape[1] > 0, f"{op}: A must be (K*D, N), got {tuple(A.shape)}", "reshape A")
    state = A.shape[1]
    require_shape(op, "A", A, (K * channels, state), "(K*D, N)")
    if delta_weight is None:
        require_shape(op, "delta", delta, (batch, K, *grid, channels), "(B, K, *grid, D)")
    else:
        require_shape(op, "delta", delta, (batch, K, *grid, delta.shape[-1]), "(B, K, *grid, R)")
        require_shape(op, "delta_weight", delta_weight, (K, channels, delta.shape[-1]), "(K, D, R)")
    for name, tensor in (("B", B), ("C", C)):
        require_shape(op, name, tensor, (batch, K, *grid, state), "(B, K, *grid, N)")
    for name, parameter in (("D", D), ("delta_bias", delta_bias)):
        if parameter is not None:
            require_shape(op, name, parameter, (K * channels,), "(K*D,)")
    if z is not None:
        merged = K * channels if route.merge == "concat" else channels
        letters = "(B, *grid, K*D)" if route.merge == "concat" else "(B, *grid, D)"
        require_shape(op, "z", z, (batch, *grid, merged), letters)
    return RouteDims(batch, K, grid, channels, state, shared)
