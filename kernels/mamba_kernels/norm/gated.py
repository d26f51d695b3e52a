"""The gated RMS norm of Mamba-2: the public function, its checks and the registered operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.checks import require
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import empty_in_order
from mamba_kernels.norm.op import check_norm, kernels_on
from mamba_kernels.norm.reference import gated_rms_norm_reference

NAME = "gated_rms_norm"


@torch.library.custom_op("mamba_kernels::gated_rms_norm", mutates_args=(), device_types=("cpu", "cuda"))
def _gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    return kernels_on(x.device).gated_norm(x, weight, bias, z, eps, group_size, norm_before_gate)


@_gated_rms_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> Tensor:
    return empty_in_order(x)


@torch.library.custom_op("mamba_kernels::gated_rms_norm_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _gated_rms_norm_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels_on(x.device).gated_norm_backward(dout, x, weight, bias, z, eps, group_size, norm_before_gate)


@_gated_rms_norm_backward.register_fake
def _(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0) if bias is None else empty_in_order(bias)
    return empty_in_order(x), empty_in_order(weight), dbias, x.new_empty(0) if z is None else empty_in_order(z)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.group_size, ctx.norm_before_gate = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = _backward_operator(dout, *tensors, ctx.eps, ctx.group_size, ctx.norm_before_gate)
    given = (gradient if t is not None else None for gradient, t in zip(gradients, tensors, strict=True))
    return *given, None, None, None


_operator = register_derivative(_gated_rms_norm, _backward, setup_context=_save)
_backward_operator = refuse_second_derivative(NAME, _gated_rms_norm_backward)
register_decomposition(_gated_rms_norm)(gated_rms_norm_reference)


def gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Divide x by the root mean square of each group of channels, scale, shift, and gate with silu(z).

    With rms(v) = v / sqrt(mean(v^2) + eps) over each group: (rms(x) weight + bias) silu(z), or
    rms(x silu(z)) weight + bias with the gate before the norm. Follows mamba-ssm's gated ``rmsnorm_fn``. Arithmetic is
    float32, float64 where an input is; the output and each gradient are dense in the dimension order of their input.

    Args:
        x: Input (..., D).
        weight: Scale (D,).
        bias: Shift (D,).
        z: Gate (..., D); no gate if None.
        eps: Added to the mean square, at least 0.
        group_size: Channels of a group, a divisor of D; all of them if None.
        norm_before_gate: Whether the norm comes before the gate. (The function's default is True as in mamba-ssm,
            whose Mamba-2 block passes False.)
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (..., D) in the dtype of x.

    Raises:
        KernelInputError: If a shape, dtype, device, eps or group size is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    check_norm(NAME, x, weight, bias, eps, z=z)
    size = x.shape[-1] if group_size is None else group_size
    require(
        size >= 1 and x.shape[-1] % size == 0,
        f"{NAME}: group_size must divide D = {x.shape[-1]}, got {group_size}",
        "pass D // groups, or None for a single group",
    )
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    run = gated_rms_norm_reference if chosen == "reference" else _operator
    return run(x, weight, bias, z, float(eps), size, norm_before_gate)
