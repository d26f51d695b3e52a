"""Scans along a route, each reading with parameters of its own.

Dimensions in names: B batch, K readings, E inner channels, R rank of the step sizes, N state, W convolution width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mamba_apps.mixers.scan_weights import scan_weights, stack_groups
from mamba_apps.mixers.ssm_parameters import wide
from mamba_kernels import Route, selective_scan_route


class ReadingParameters(NamedTuple):
    """What one reading of a route convolves and scans with; or those of K readings, stacked.

    Args:
        conv_weight: (E, 1, W) filters.
        x_weight: (R + 2N, E) the projection to low-rank step sizes, B and C.
        dt_weight: (E, R) the projection from there to step sizes.
        dt_bias: (E,) their bias.
        A_log: (E, N) logarithms of the decay rates.
        D: (E,) skip weights.
        conv_bias: (E,) the filters' bias, or None.
    """

    conv_weight: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    conv_bias: Tensor | None


def stack_parameters(readings: Sequence[ReadingParameters]) -> ReadingParameters:
    """Return the parameters of K readings, stacked."""
    groups = [group for group in zip(*readings, strict=True) if group[0] is not None]
    return ReadingParameters(*stack_groups(*groups), *([] if len(groups) == len(readings[0]) else [None]))


def scan_readings(
    u: Tensor, z: Tensor, readings: ReadingParameters, route: Route, backend: str | None = None
) -> Tensor:
    """Scan a grid along each reading of a route with that reading's own parameters, merge, and gate once.

    Args:
        u: What each reading scans, (B, K, *spatial, E).
        z: The gate (B, *spatial, E), before its activation.
        readings: The parameters of the K readings, stacked.
        route: The route.
        backend: The scan's implementation to force.

    Returns:
        (B, *spatial, E).
    """
    weights = scan_weights(readings.x_weight, readings.dt_weight, readings.A_log, u.dtype, shared=False)
    # A batch of as many products as there are readings: each has weights of its own.
    u_KXE = u.transpose(0, 1).flatten(1, -2)
    parts = torch.bmm(u_KXE, weights.project.mT).split(weights.widths, dim=-1)
    dt, B, C = (part.unflatten(1, (u.shape[0], *u.shape[2:-1])).transpose(0, 1) for part in parts)
    return selective_scan_route(
        u,
        dt,
        weights.A,
        B,
        C,
        wide(readings.D).flatten(),
        z,
        # Apart from its weight: the scan adds it in float32.
        wide(readings.dt_bias).flatten(),
        True,
        route=route,
        delta_weight=weights.delta,
        backend=backend,
    )
