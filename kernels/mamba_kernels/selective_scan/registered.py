"""The selective scan as operators that PyTorch knows, so that compilers and exporters can carry it along.

``mamba_kernels::selective_scan`` and its backward pass run the kernels of the device. Both passes of one device
agree on the checkpoints between them, whatever these are. `scan` is the operator as it is to be called.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import empty_in_order
from mamba_kernels.selective_scan import cpu, triton_plan


def kernels_on(device: torch.device) -> ModuleType:
    """Return the module whose ``forward`` and ``backward`` run on ``device``."""
    return backends.kernels("mamba_kernels.selective_scan", device)


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Return the shape of what the forward pass on u's device keeps for its backward."""
    plan = triton_plan if backends.runs_gpu_kernels(u.device) else cpu
    return plan.checkpoint_shape(u, A, B, C)


@torch.library.custom_op("mamba_kernels::selective_scan", mutates_args=(), device_types=("cpu", "cuda"))
def registered_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the last state, and what the backward pass starts from (nothing unless ``save``)."""
    return kernels_on(u.device).forward(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, reverse, out_dtype, save
    )


@torch.library.custom_op("mamba_kernels::selective_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def registered_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state, empty for absent inputs."""
    return kernels_on(u.device).backward(
        grad_out, grad_last_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx,
        reverse, checkpoints,
    )  # fmt: skip


@registered_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(u, delta, A, B, C)
    checkpoints = checkpoint_shape(u, A, B, C) if save else (0,)
    return (
        empty_in_order(u, out_dtype),
        u.new_empty((u.shape[0], *A.shape), dtype=dtype),
        u.new_empty(checkpoints, dtype=dtype),
    )


@registered_backward.register_fake
def _(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    checkpoints: Tensor,
) -> tuple[Tensor, ...]:
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(u.new_empty(0) if x is None else empty_in_order(x) for x in inputs)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, initial_state, seq_idx, reverse, _out_dtype, _save = inputs
    out, _, checkpoints = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(*tensors, initial_state, seq_idx, checkpoints)
    ctx.softplus, ctx.reverse, ctx.out_dtype = softplus, reverse, out.dtype


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: Any) -> tuple:
    *tensors, initial_state, seq_idx, checkpoints = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0], dtype=ctx.out_dtype)
    gradients = scan_backward(
        grad_out, grad_last_state, *tensors, ctx.softplus, initial_state, seq_idx, ctx.reverse, checkpoints
    )
    present = [*tensors, initial_state]
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (
        None if x is None else gradient for x, gradient in zip(present, gradients, strict=True)
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias, None, dinitial, None, None, None, None


scan = register_derivative(registered_scan, _differentiate, setup_context=_setup_context)
scan_backward = refuse_second_derivative("selective_scan", registered_backward)
