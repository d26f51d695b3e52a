"""Operators of selective state space models on tensors, and the routes they read grids along."""

from __future__ import annotations

from mamba_kernels.causal_conv1d import (
    causal_conv1d,
    causal_conv1d_bidirectional,
    causal_conv1d_update,
    causal_conv1d_varlen_states,
)
from mamba_kernels.depthwise_conv import depthwise_conv
from mamba_kernels.errors import BackendError, KernelInputError
from mamba_kernels.export import decompositions
from mamba_kernels.norm import gated_rms_norm, layer_norm, rms_norm
from mamba_kernels.routes import Readings, Route, route_scan, selective_scan_route
from mamba_kernels.selective_scan import selective_scan
from mamba_kernels.selective_state_update import selective_state_update
from mamba_kernels.ssd import ssd, ssd_route

__all__ = [
    "BackendError",
    "KernelInputError",
    "causal_conv1d",
    "causal_conv1d_bidirectional",
    "causal_conv1d_update",
    "causal_conv1d_varlen_states",
    "decompositions",
    "depthwise_conv",
    "gated_rms_norm",
    "layer_norm",
    "rms_norm",
    "Readings",
    "Route",
    "route_scan",
    "selective_scan",
    "selective_scan_route",
    "selective_state_update",
    "ssd",
    "ssd_route",
]
