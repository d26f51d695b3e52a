"""The selective scan along a route: its public function, the registered operator, and the choice of what runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative, wants_gradient
from mamba_kernels.checks import compute_dtype
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import empty_in_order, empty_sized
from mamba_kernels.routes.checks import NAME, cast_route_inputs, check_route_inputs
from mamba_kernels.routes.cpu import checkpoint_shape
from mamba_kernels.routes.reference import route_scan, scan_readings
from mamba_kernels.routes.route import Route
from mamba_kernels.selective_scan.decomposition import selective_scan_decomposition


def _route(name: str, merge: str, widths: Sequence[int]) -> Route:
    return Route(name, merge, tuple(widths) or None)


def _one_grid(x: Tensor, delta: Tensor) -> Tensor:
    """Return x, or its first reading's grid where each has its own: the result lies in memory as it does."""
    return x if x.dim() < delta.dim() else x[:, 0]


def _empty_out(x: Tensor, delta: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    like = _one_grid(x, delta)
    return empty_sized(like, (*like.shape[:-1], channels), dtype)


def _exactly(kind: str) -> AbstractContextManager[Any]:
    """Return what keeps autocast off a kind of device; entering it takes a while, and it seldom has to be."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    route: Route,
) -> Any:
    """Return the device's `RouteScan`."""
    grid = tuple(x.shape[-delta.dim() + 2 : -1])
    readings = route.readings(grid, x.device)
    kernels = backends.kernels("mamba_kernels.routes", x.device)
    return kernels.RouteScan(x, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, readings)


@torch.library.custom_op("mamba_kernels::selective_scan_route", mutates_args=(), device_types=("cpu", "cuda"))
def _scan_route(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    route: str,
    merge: str,
    widths: Sequence[int],
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result and what the backward pass needs, if ``save``: the merged result before a gate, checkpoints."""
    scan = _scan(x, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, _route(route, merge, widths))
    with _exactly(x.device.type), torch.cuda.device_of(x):
        out, merged, checkpoints = scan.forward(z, out_dtype, save)
    ordered = _empty_out(x, delta, out.shape[-1], out_dtype)
    return out if out.stride() == ordered.stride() else ordered.copy_(out), merged, checkpoints


@_scan_route.register_fake
def _(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    route: str,
    merge: str,
    widths: Sequence[int],
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, delta, A, B, C, delta_weight)
    channels = x.shape[-1] * (delta.shape[1] if merge == "concat" else 1)
    keeps_merged = save and z is not None
    merged = x.new_empty((*_one_grid(x, delta).shape[:-1], channels) if keeps_merged else 0, dtype=out_dtype)
    checkpoints = x.new_empty(checkpoint_shape(x, delta, A, B, C) if save else 0, dtype=dtype)
    return _empty_out(x, delta, channels, out_dtype), merged, checkpoints


@register_decomposition(_scan_route)
def _decompose(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    route: str,
    merge: str,
    widths: Sequence[int],
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the operator returns; what it would save for a backward pass is zeros."""
    tensors = (x, delta, A, B, C, D, z, delta_bias, delta_weight)
    readings = _route(route, merge, widths).readings_in_graph(delta.shape[2:-1], x.device)
    out = scan_readings(_decomposed_scan, readings, *tensors, delta_softplus, out_dtype)
    dtype = compute_dtype(x, delta, A, B, C, delta_weight)
    merged = x.new_zeros(out.shape if save and z is not None else 0, dtype=out_dtype)
    return out, merged, x.new_zeros(checkpoint_shape(x, delta, A, B, C) if save else 0, dtype=dtype)


def _decomposed_scan(*arguments: Any, seq_idx_BL: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    return selective_scan_decomposition(*arguments, None, seq_idx_BL, False, out_dtype, False)[0]


@torch.library.custom_op("mamba_kernels::selective_scan_route_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _differentiate(
    dout: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    merged: Tensor,
    checkpoints: Tensor,
    delta_softplus: bool,
    route: str,
    merge: str,
    widths: Sequence[int],
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, delta, A, B, C, D, z, delta_bias and delta_weight; empty where the input is None."""
    scan = _scan(x, delta, A, B, C, D, delta_bias, delta_weight, delta_softplus, _route(route, merge, widths))
    with _exactly(x.device.type), torch.cuda.device_of(x):
        if not save:
            _, merged, checkpoints = scan.forward(z, dout.dtype, True)
        return scan.backward(dout, z, merged, checkpoints)


@_differentiate.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    merged: Tensor,
    checkpoints: Tensor,
    delta_softplus: bool,
    route: str,
    merge: str,
    widths: Sequence[int],
    save: bool,
) -> tuple[Tensor, ...]:
    inputs = (x, delta, A, B, C, D, z, delta_bias, delta_weight)
    return tuple(x.new_empty(0) if part is None else empty_in_order(part) for part in inputs)


_INPUTS = 9


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, merged, checkpoints = output
    ctx.flags = inputs[_INPUTS:]
    ctx.save_for_backward(*inputs[:_INPUTS], merged, checkpoints)
    ctx.mark_non_differentiable(merged, checkpoints)
    # What nobody differentiates then costs no gradient of zeros.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing hands them out a single time
    if dout is None:
        return (None,) * (_INPUTS + len(ctx.flags))
    *options, _out_dtype, save = ctx.flags
    gradients = _run_backward(dout, *saved, *options, save)
    wanted = [g if part is not None else None for part, g in zip(saved[:_INPUTS], gradients, strict=True)]
    return (*wanted, *[None] * len(ctx.flags))


_run = register_derivative(_scan_route, _backward, setup_context=_save)
_run_backward = refuse_second_derivative(NAME, _differentiate)


def selective_scan_route(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    route: Route,
    delta_weight: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Run the selective scan along every reading of a grid, each with its own parameters, and merge the results.

    All tensors are in the grid's order; nothing needs permuting before or after. For reading k the recurrence is that
    of `selective_scan` along ``route.readings(grid).order[k]``, starting afresh where its segments change; the K
    results are put back on the grid, merged as the route says, and gated by silu(z) once. Follows the cross scan and
    cross merge of VMamba (arXiv 2401.10166). Arithmetic is float32, float64 where an input is. Tensors may have any
    strides; each gradient is dense in the dimension order of its input, the result in that of x. Under autocast x,
    delta, B, C, z and delta_weight are cast to its dtype.

    Args:
        x: Input (B, *grid, D) that all readings share, or (B, K, *grid, D), one for each; the grid has 1 to 3 axes.
        delta: Step sizes (B, K, *grid, D), or (B, K, *grid, R) of low rank with ``delta_weight``.
        A: Real decay rates (K*D, N), reading after reading; negative in any stable model.
        B: Input matrices (B, K, *grid, N).
        C: Output matrices (B, K, *grid, N).
        D: Skip weights (K*D,).
        z: Gate (B, *grid, D), or (B, *grid, K*D) where the route concatenates.
        delta_bias: Bias (K*D,) added to delta before the softplus.
        delta_softplus: Whether to apply softplus (the identity above 20) to delta.
        route: The route; ``route.count(rank)`` is K.
        delta_weight: Weights (K, D, R) that turn a low-rank delta into step sizes, in the arithmetic's dtype.
        out_dtype: The result's dtype; that of x if None.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The merged result (B, *grid, D), or (B, *grid, K*D) where the route concatenates.

    Raises:
        KernelInputError: If a shape, dtype or device is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    dims = check_route_inputs(NAME, route, x, delta, A, B, C, D, z, delta_bias, delta_weight, out_dtype)
    x, delta, B, C, z, delta_weight = cast_route_inputs(x, delta, B, C, z, delta_weight)
    if backends.choose(NAME, x.device, backend, has_triton=True) == "reference":
        return route_scan(
            x, delta, A, B, C, D, z, delta_bias, delta_softplus,
            route=route, delta_weight=delta_weight, out_dtype=out_dtype,
        )  # fmt: skip
    tensors = (x, delta, A, B, C, D, z, delta_bias, delta_weight)
    # Whether anything is kept for a backward pass is a part of the call, for the operator itself cannot see autograd.
    trains = wants_gradient(*tensors)
    options = (delta_softplus, route.name, route.merge, route.widths(len(dims.grid)), out_dtype or x.dtype, trains)
    return _run(*tensors, *options)[0]
