"""SSD on GPUs as an operator that PyTorch knows, so that compilers and exporters can carry it along.

On a CPU it is made of PyTorch's own operations, and no operator is needed. `run` is the operator as it is to be called.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.layout import empty_in_order


def _kernels(device: torch.device) -> ModuleType:
    return backends.kernels("mamba_kernels.ssd", device)


@torch.library.custom_op("mamba_kernels::ssd", mutates_args=(), device_types=("cpu", "cuda"))
def registered_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the final states, and the output before the gate (nothing unless ``save`` and a gate)."""
    return _kernels(x.device).forward(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, (dt_smallest, dt_largest), initial_states, seq_idx, reverse,
        out_dtype, save,
    )  # fmt: skip


@torch.library.custom_op("mamba_kernels::ssd_backward", mutates_args=(), device_types=("cpu", "cuda"))
def registered_backward(
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
    dt_smallest: float,
    dt_largest: float,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    ungated: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C, D, z, dt_bias and initial_states, empty for absent inputs."""
    return _kernels(x.device).backward(
        grad_out, grad_final_states, x, dt, A, B, C, D, z, dt_bias, dt_softplus, (dt_smallest, dt_largest),
        initial_states, seq_idx, reverse, ungated,
    )  # fmt: skip


@registered_ssd.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_smallest: float,
    dt_largest: float,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = empty_in_order(x, out_dtype)
    final_states = x.new_empty((x.shape[0], *x.shape[2:], B.shape[-1]), dtype=torch.float32)
    return y, final_states, torch.empty_like(y) if save and z is not None else y.new_empty(0)


@registered_backward.register_fake
def _(
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
    dt_smallest: float,
    dt_largest: float,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    reverse: bool,
    ungated: Tensor,
) -> tuple[Tensor, ...]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_states)
    return tuple(x.new_empty(0) if t is None else empty_in_order(t) for t in inputs)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, smallest, largest, initial_states, seq_idx, reverse, _out_dtype, _save = inputs
    out, _, ungated = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(ungated)
    ctx.save_for_backward(*tensors, initial_states, seq_idx, ungated)
    ctx.options, ctx.reverse, ctx.out_dtype = (softplus, smallest, largest), reverse, out.dtype


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_final_states: Tensor | None, _: Any) -> tuple:
    *tensors, initial_states, seq_idx, ungated = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0], dtype=ctx.out_dtype)
    gradients = ssd_backward(
        grad_out, grad_final_states, *tensors, *ctx.options, initial_states, seq_idx, ctx.reverse, ungated
    )
    present = [*tensors, initial_states]
    *given, dinitial = (None if x is None else gradient for x, gradient in zip(present, gradients, strict=True))
    return *given, None, None, None, dinitial, None, None, None, None


run = register_derivative(registered_ssd, _differentiate, setup_context=_setup_context)
ssd_backward = refuse_second_derivative("ssd", registered_backward)
