"""The selective scan along a route in plain PyTorch: gather, scan each reading, put back, merge.

This is the definition that the fast paths are tested against; it is differentiable any number of times.

Dimensions: B batch, K readings, L cells of the grid, D channels, N state, R rank of a low-rank delta.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.routes.checks import cast_route_inputs, check_route_inputs
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
    dtype = compute_dtype(x, delta, A, B, C, delta_weight)
    readings = route.readings(dims.grid, x.device)
    x_BKLD = readings.gather(x) if dims.shared else readings.gather_each(x)
    delta_BKLD, B_BKLN, C_BKLN = (readings.gather_each(part) for part in (delta, B, C))
    if delta_weight is not None:
        # Products and a sum rather than a matrix product, which autocast would take out of this dtype.
        delta_BKLD = (delta_BKLD.to(dtype)[..., None, :] * delta_weight.to(dtype)[:, None]).sum(-1)
    A_KDN = A.unflatten(0, (dims.K, dims.D))
    D_KD, bias_KD = (None if part is None else part.unflatten(0, (dims.K, dims.D)) for part in (D, delta_bias))
    segment = readings.segment
    y = []
    for k in range(dims.K):
        y_BDL, _ = selective_scan_reference(
            x_BKLD[:, k].mT,
            delta_BKLD[:, k].mT,
            A_KDN[k],
            B_BKLN[:, k].mT,
            C_BKLN[:, k].mT,
            None if D_KD is None else D_KD[k],
            None,
            None if bias_KD is None else bias_KD[k],
            delta_softplus,
            seq_idx_BL=None if segment is None else segment[k].expand(dims.batch, -1),
            out_dtype=dtype,
        )
        y.append(y_BDL.mT)
    merged = readings.scatter_merge(torch.stack(y, 1))
    if z is not None:
        merged = merged * F.silu(z.to(dtype))
    return in_order_of(merged.to(out_dtype or x.dtype), x if dims.shared else x[:, 0])
