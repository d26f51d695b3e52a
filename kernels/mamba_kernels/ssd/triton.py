"""SSD on a GPU, or interpreted: runs the kernels in the configuration chosen for the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.gpu import on_device_of_inputs, refuse_float64
from mamba_kernels.ssd import triton_choices, triton_launch
from mamba_kernels.ssd.triton_route import backward_route, forward_route

__all__ = ["backward", "backward_route", "forward", "forward_route"]


@on_device_of_inputs
def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the final states, and the output before the gate (nothing unless ``save`` and a gate).

    The arguments are those of `ssd`, already checked.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    refuse_float64("ssd", *tensors)
    configs = triton_choices.forward_configs(
        *tensors, dt_softplus, initial_states is not None, False, seq_idx is not None, reverse, out_dtype
    )
    return triton_launch.forward(
        *tensors, dt_softplus, dt_limit, initial_states, seq_idx, reverse, out_dtype, save, configs
    )


@on_device_of_inputs
def backward(
    grad_out: Tensor,
    grad_final_states: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    ungated: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and initial_states, empty for absent inputs."""
    tensors = (x, dt, A, B, C, D, z, dt_bias)
    enters, leaves = initial_states is not None, grad_final_states is not None
    configs = triton_choices.backward_configs(
        grad_out, *tensors, dt_softplus, enters, leaves, seq_idx is not None, reverse, grad_out.dtype
    )
    return triton_launch.backward(
        grad_out, grad_final_states, *tensors, dt_softplus, dt_limit, initial_states, seq_idx, reverse, ungated, configs
    )
