"""The selective scan along a route in plain PyTorch: gather, scan each reading, put back, merge.

This is the definition that the fast paths are tested against; it is differentiable any number of times.

Dimensions: B batch, K readings, L cells of the grid, D channels, N state, R rank of a low-rank delta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.routes.checks import cast_route_inputs, check_route_inputs
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.route import Route
from mamba_kernels.selective_scan.reference import selective_scan_reference


def route_scan(
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
) -> Tensor:
    """Scan a grid along a route, step by step; arguments, result and errors are those of `selective_scan_route`."""
    dims = check_route_inputs("route_scan", route, x, delta, A, B, C, D, z, delta_bias, delta_weight, out_dtype)
    x, delta, B, C, z, delta_weight = cast_route_inputs(x, delta, B, C, z, delta_weight)
    readings = route.readings(dims.grid, x.device)
    tensors = (x, delta, A, B, C, D, z, delta_bias, delta_weight)
    return scan_readings(_reference_scan, readings, *tensors, delta_softplus, out_dtype or x.dtype)


def _reference_scan(*arguments: Any, **options: Any) -> Tensor:
    return selective_scan_reference(*arguments, **options)[0]


def scan_readings(
    scan: Callable[..., Tensor],
    readings: Readings,
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
    out_dtype: torch.dtype,
) -> Tensor:
    """Gather each reading, ``scan`` it, put the results back and merge them; the arguments are checked and cast.

    Args:
        scan: From the arguments of `selective_scan_reference` up to ``delta_softplus``, ``seq_idx_BL`` and
            ``out_dtype`` to y (B, D, L).
        readings: The readings of the grid.
        x: Input.
        delta: Step sizes.
        A: Decay rates.
        B: Input matrices.
        C: Output matrices.
        D: Skip weights.
        z: Gate.
        delta_bias: Bias of the step sizes.
        delta_weight: Weights of low-rank step sizes.
        delta_softplus: Whether to apply softplus to the step sizes.
        out_dtype: The result's dtype.

    Returns:
        The merged result, as of `selective_scan_route`.
    """
    dtype = compute_dtype(x, delta, A, B, C, delta_weight)
    shared = x.dim() < delta.dim()
    x_BKLD = readings.gather(x) if shared else readings.gather_each(x)
    delta_BKLD, B_BKLN, C_BKLN = (readings.gather_each(part) for part in (delta, B, C))
    if delta_weight is not None:
        # Products and a sum rather than a matrix product, which autocast would take out of this dtype.
        delta_BKLD = (delta_BKLD.to(dtype)[..., None, :] * delta_weight.to(dtype)[:, None]).sum(-1)
    A_KDN = A.unflatten(0, (readings.K, -1))
    D_KD, bias_KD = (None if part is None else part.unflatten(0, (readings.K, -1)) for part in (D, delta_bias))
    segment = readings.segment
    y = [
        scan(
            x_BKLD[:, k].mT,
            delta_BKLD[:, k].mT,
            A_KDN[k],
            B_BKLN[:, k].mT,
            C_BKLN[:, k].mT,
            None if D_KD is None else D_KD[k],
            None,
            None if bias_KD is None else bias_KD[k],
            delta_softplus,
            seq_idx_BL=None if segment is None else segment[k].expand(x.shape[0], -1),
            out_dtype=dtype,
        ).mT
        for k in range(readings.K)
    ]
    merged = readings.scatter_merge(torch.stack(y, 1))
    if z is not None:
        merged = merged * F.silu(z.to(dtype))
    return in_order_of(merged.to(out_dtype), x if shared else x[:, 0])
