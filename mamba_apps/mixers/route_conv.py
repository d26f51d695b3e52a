"""The causal convolution along each reading of a route, with every reading's own weights.

Dimensions in names: B batch, K readings, L cells of the grid, E channels, W width of the convolution.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mamba_kernels import Readings, Route, causal_conv1d, causal_conv1d_bidirectional


def causal_conv1d_route(
    x: Tensor,
    weight_KEW: Tensor,
    bias_KE: Tensor | None,
    route: Route,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve a grid causally along each reading of ``route``; inputs and outputs are in grid order.

    Args:
        x: The grid (B, *spatial, E), which all readings share.
        weight_KEW: The weights of each reading; the last tap meets the current cell.
        bias_KE: The biases of each reading.
        route: The route; where it has segments, nothing passes from one to the next.
        activation: None or "silu".
        backend: The convolution's implementation to force.

    Returns:
        The grids (B, K, *spatial, E), each reading's beside each other in memory.
    """
    x_BLE = x.flatten(1, -2)
    if route.name == "bidirectional":
        y_BKEL = causal_conv1d_bidirectional(x_BLE.mT, weight_KEW, bias_KE, activation, backend=backend)
        return y_BKEL.mT.unflatten(2, x.shape[1:-1])
    readings = route.readings(tuple(x.shape[1:-1]), x.device)
    # Of mirrored readings only the first half is gathered: the others are the same sequences, convolved from the end.
    paths = readings.K // 2 if readings.mirrored else readings.K
    ys: dict[int, Tensor] = {}
    for path in range(paths):
        row_major = readings.row_major and path == 0
        path_BEL = (x_BLE if row_major else readings.along(path, x_BLE)).transpose(1, 2)
        for k in (path, path + paths) if readings.mirrored else (path,):
            y_BEL = causal_conv1d(
                path_BEL,
                weight_KEW[k],
                None if bias_KE is None else bias_KE[k],
                _segments(readings, k, x.shape[0]),
                activation=activation,
                reverse=k >= paths,
                backend=backend,
            )
            y_BLE = cast(Tensor, y_BEL).transpose(1, 2)
            ys[k] = y_BLE if row_major else readings.back(path, y_BLE)
    return torch.stack([ys[k] for k in range(readings.K)]).transpose(0, 1).unflatten(2, x.shape[1:-1])


def _segments(readings: Readings, k: int, batch: int) -> Tensor | None:
    return None if readings.segment is None else readings.segment[k].expand(batch, -1)
