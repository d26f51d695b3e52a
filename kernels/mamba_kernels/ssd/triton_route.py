"""SSD along a route on a GPU: the kernels read and write the grid in place, and one more merges what readings leave.

Dimensions: B batch, K readings, L cells of the grid, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.gpu import on_device_of_inputs, refuse_float64
from mamba_kernels.layout import in_order_of
from mamba_kernels.routes.readings import Readings
from mamba_kernels.routes.triton import merge_readings
from mamba_kernels.ssd import triton_choices, triton_launch


def _on_cells(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, readings: Readings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, dt, B and C with one axis of cells and one of readings, which is expanded where these share."""
    own_x, own_steps = x.dim() == B.dim(), dt.dim() == B.dim() - 1
    x_BKLHP = (x if own_x else x[:, None]).flatten(2, -3)
    dt_BKLH = (dt if own_steps else dt[:, None]).flatten(2, -2)
    K = readings.K
    return (
        x_BKLHP.expand(-1, K, -1, -1, -1), dt_BKLH.expand(-1, K, -1, -1), B.flatten(2, -3), C.flatten(2, -3)
    )  # fmt: skip


@on_device_of_inputs
def forward_route(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    readings: Readings,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return the merged result (B, *grid, H or K*H, P); the arguments are those of `ssd_route`, already checked.

    Readings leave results in float32 where they are still to be added up.
    """
    refuse_float64("ssd_route", x, dt, A, B, C, D, dt_bias)
    x, dt, B, C = _on_cells(x, dt, B, C, readings)
    tensors = (x, dt, A, B, C, D, None, dt_bias)
    apart = readings.K == 1 or readings.merge == "concat"
    dtype = out_dtype if apart else torch.float32
    configs = triton_choices.forward_configs(
        *tensors, dt_softplus, False, False, readings.segment is not None, False, dtype
    )
    y_BKLHP, _, _ = triton_launch.forward(
        *tensors, dt_softplus, dt_limit, None, None, False, dtype, False, configs, readings
    )
    if apart:
        y = y_BKLHP.transpose(1, 2).flatten(2, 3)
    else:
        scale = 1 / readings.K if readings.merge == "mean" else 1.0
        y = merge_readings(y_BKLHP.flatten(3), scale, out_dtype).unflatten(-1, x.shape[-2:])
    return y.unflatten(1, readings.shape)


@on_device_of_inputs
def backward_route(
    grad_out: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    readings: Readings,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D and dt_bias, empty for absent inputs."""
    K, grid = readings.K, readings.shape
    given = (x, dt, B, C)
    own_x, own_steps = x.dim() == B.dim(), dt.dim() == B.dim() - 1
    x, dt, B, C = _on_cells(x, dt, B, C, readings)
    dout = grad_out.flatten(1, -3)
    if readings.merge == "concat":
        dout_BKLHP = dout.unflatten(2, (K, -1)).transpose(1, 2)
    else:
        dout_BKLHP = (dout / K if readings.merge == "mean" and K > 1 else dout)[:, None].expand_as(x)
    tensors = (x, dt, A, B, C, D, None, dt_bias)
    configs = triton_choices.backward_configs(
        dout_BKLHP, *tensors, dt_softplus, False, False, readings.segment is not None, False, dout.dtype
    )
    dx, ddt, dA, dB, dC, dD, _, dbias, _ = triton_launch.backward(
        dout_BKLHP, None, *tensors, dt_softplus, dt_limit, None, None, False, x.new_empty(0), configs, readings
    )
    if not own_x:
        dx = dx[:, 0] if K == 1 else merge_readings(dx.flatten(3), 1.0, dx.dtype).unflatten(-1, x.shape[-2:])
    if not own_steps:
        ddt = ddt.sum(1, dtype=torch.float32).to(dt.dtype)
    dx, ddt, dB, dC = (
        in_order_of(gradient.unflatten(2 if own else 1, grid), t)
        for gradient, t, own in zip((dx, ddt, dB, dC), given, (own_x, own_steps, True, True), strict=True)
    )
    return dx, ddt, dA, dB, dC, dD, dbias
