"""SSD along a route: its public function, its definition in plain PyTorch, and the choice of what runs.

Dimensions: B batch, K readings, L cells of the grid, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.checks import (
    FLOATS,
    cast_for_autocast,
    compute_dtype,
    require,
    require_device,
    require_float,
    require_shape,
)
from mamba_kernels.layout import in_order_of
from mamba_kernels.memo import per_layout
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.route import Route
from mamba_kernels.ssd import cpu
from mamba_kernels.ssd.reference import ssd_reference
from mamba_kernels.ssd.route_registered import run

NAME = "ssd_route"
NO_LIMIT = (0.0, math.inf)


@per_layout
def _check(
    route: Route,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: tuple[float, float],
    out_dtype: torch.dtype | None,
) -> tuple[int, ...]:
    """Return the grid that checked inputs agree on."""
    require(isinstance(route, Route), f"{NAME}: route must be a Route, got {route!r}", "pass e.g. Route('cross')")
    for name, t in {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}.items():
        if t is not None:
            require_float(NAME, name, t)
            require_device(NAME, name, t, x.device)
    rank = B.dim() - 4
    require(
        1 <= rank <= 3,
        f"{NAME}: B must be (B, K, *grid, G, N) with a grid of 1 to 3 axes, got shape {tuple(B.shape)}",
        "give each reading its own B, after the batch dimension",
    )
    require(
        x.dim() in (rank + 3, rank + 4),
        f"{NAME}: x must be (B, *grid, H, P), or (B, K, *grid, H, P), with the {rank} grid axes of B, got "
        f"{tuple(x.shape)}",
        "flatten or unflatten x to the grid",
    )
    batch, K, (*grid, heads, width), (groups, states) = (
        x.shape[0], route.count(rank), x.shape[-rank - 2 :], B.shape[-2:]
    )  # fmt: skip
    require(x.numel() > 0, f"{NAME}: x of shape {tuple(x.shape)} is empty", "skip empty inputs")
    if x.dim() == rank + 4:
        require_shape(NAME, "x", x, (batch, K, *grid, heads, width), "(B, K, *grid, H, P)")
    own_steps = dt.dim() == rank + 3
    letters = "(B, K, *grid, H)" if own_steps else "(B, *grid, H)"
    require_shape(NAME, "dt", dt, (batch, *((K,) if own_steps else ()), *grid, heads), letters)
    for name, t in (("B", B), ("C", C)):
        require_shape(NAME, name, t, (batch, K, *grid, groups, states), "(B, K, *grid, G, N)")
    require(
        groups > 0 and heads % groups == 0 and states > 0,
        f"{NAME}: the groups G of B {tuple(B.shape)} must divide the H = {heads} heads of x, and N be at least 1",
        f"choose a number of groups that divides {heads}",
    )
    require_shape(NAME, "A", A, (K * heads,), "(K*H,)")
    if D is not None:
        shape, letters = ((K * heads,), "(K*H,)") if D.dim() == 1 else ((K * heads, width), "(K*H, P)")
        require_shape(NAME, "D", D, shape, letters)
    if dt_bias is not None:
        require_shape(NAME, "dt_bias", dt_bias, (K * heads,), "(K*H,)")
    require(
        len(dt_limit) == 2 and 0 <= dt_limit[0] <= dt_limit[1],
        f"{NAME}: dt_limit must be (smallest, largest) with 0 <= smallest <= largest, got {dt_limit}",
        "pass (0, inf) for no limit",
    )
    require(
        out_dtype is None or out_dtype in FLOATS,
        f"{NAME}: out_dtype must be a real floating point dtype, got {out_dtype}",
        "pass torch.float32, torch.bfloat16, torch.float16 or None",
    )
    return tuple(grid)


def ssd_route(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    *,
    route: Route,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Run SSD along every reading of a grid, each with its own parameters, and merge the results.

    All tensors are in the grid's order; on a GPU nothing is permuted in memory. For reading k the recurrence is that of
    `ssd` along ``route.readings(grid).order[k]``, starting afresh where its segments change; the K results are put back
    on the grid and merged as the route says. Arithmetic is float32, float64 where an input is. Tensors may have any
    strides; each gradient is dense in the dimension order of its input, the result in that of x. Under autocast x, dt,
    B and C are cast to its dtype.

    Args:
        x: Input (B, *grid, H, P) that all readings share, or (B, K, *grid, H, P); the grid has 1 to 3 axes.
        dt: Step sizes (B, *grid, H), or (B, K, *grid, H), before bias, softplus and limit.
        A: Decay rates (K*H,), reading after reading; negative in any stable model.
        B: Input matrices (B, K, *grid, G, N); head h reads group h // (H / G).
        C: Output matrices (B, K, *grid, G, N).
        D: Skip weights (K*H,), or (K*H, P).
        dt_bias: Bias (K*H,) added to dt before the softplus.
        dt_softplus: Whether to apply softplus (the identity above 20) to dt.
        dt_limit: The smallest and the largest step size, at least 0.
        route: The route; ``route.count(rank)`` is K.
        out_dtype: The result's dtype; that of x if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The merged result (B, *grid, H, P), or (B, *grid, K*H, P) where the route concatenates.

    Raises:
        KernelInputError: If a shape, dtype, device or option is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of "triton".
    """
    dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
    grid = _check(route, x, dt, A, B, C, D, dt_bias, dt_limit, out_dtype)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    x, dt, B, C = (cast_for_autocast(t) for t in (x, dt, B, C))
    tensors, out_dtype = (x, dt, A, B, C, D, dt_bias), out_dtype or x.dtype
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    # Autocast would run the matrix products below in half precision.
    with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
        if chosen == "triton":
            return run(*tensors, dt_softplus, *dt_limit, route.name, route.merge, route.widths(len(grid)), out_dtype)
        scan = _reference if chosen == "reference" else _by_chunks
        return scan_readings(scan, route.readings(grid, x.device), *tensors, dt_softplus, dt_limit, out_dtype)


def _reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool,
    limit: tuple[float, float], seq_idx: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return ssd_reference(x, dt, A, B, C, D, None, bias, softplus, limit, None, seq_idx, False, dtype)[0]


def _by_chunks(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool,
    limit: tuple[float, float], seq_idx: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return cpu.ssd(x, dt, A, B, C, None, D, None, bias, softplus, limit, None, seq_idx, False, dtype)[0]


def scan_readings(
    scan: Callable[..., Tensor],
    readings: Readings,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    out_dtype: torch.dtype,
) -> Tensor:
    """Gather each reading, ``scan`` it, put the results back and merge them; the arguments are checked and cast."""
    dtype, width = compute_dtype(x, dt, A, B, C), x.shape[-1]
    own_x, own_steps = x.dim() == B.dim(), dt.dim() == B.dim() - 1
    x_BKLX = (readings.gather_each if own_x else readings.gather)(x.flatten(-2))
    dt_BKLH = (readings.gather_each if own_steps else readings.gather)(dt)
    B_BKLX, C_BKLX = (readings.gather_each(M.flatten(-2)) for M in (B, C))
    A_KH = A.unflatten(0, (readings.K, -1))
    D_K, bias_KH = (None if t is None else t.unflatten(0, (readings.K, -1)) for t in (D, dt_bias))
    ys = [
        scan(
            x_BKLX[:, k].unflatten(-1, (-1, width)),
            dt_BKLH[:, k],
            A_KH[k],
            *(M_BKLX[:, k].unflatten(-1, B.shape[-2:]) for M_BKLX in (B_BKLX, C_BKLX)),
            None if D_K is None else D_K[k],
            None if bias_KH is None else bias_KH[k],
            dt_softplus,
            dt_limit,
            None if readings.segment is None else readings.segment[k].expand(x.shape[0], -1),
            dtype,
        ).flatten(-2)
        for k in range(readings.K)
    ]
    merged = readings.scatter_merge(torch.stack(ys, 1)).to(out_dtype).unflatten(-1, (-1, width))
    return in_order_of(merged, x[:, 0] if own_x else x)
