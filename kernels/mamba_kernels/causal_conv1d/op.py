"""The causal convolution's public function: its checks, the registered operator, and the choice of what runs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.autograd import refuse_second_derivative, register_derivative
from mamba_kernels.causal_conv1d.reference import causal_conv1d_reference
from mamba_kernels.checks import (
    cast_for_autocast,
    require,
    require_activation,
    require_device,
    require_float,
    require_shape,
)
from mamba_kernels.export import register_decomposition
from mamba_kernels.layout import empty_in_order
from mamba_kernels.memo import per_layout

NAME = "causal_conv1d"


def kernels_on(device: torch.device) -> ModuleType:
    """Return the module of the convolution's kernels for ``device``."""
    return backends.kernels("mamba_kernels.causal_conv1d", device)


def check_convolution(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Check what the convolution and its step by step update have in common; x is known to have channels in dim 1."""
    for name, t in {"x": x, "weight": weight, "bias": bias}.items():
        if t is not None:
            require_float(op, name, t)
            require_device(op, name, t, x.device)
    require(
        weight.dim() == 2 and weight.shape[0] == x.shape[1] and weight.shape[1] >= 1,
        f"{op}: weight must have shape (D, W) with D = {x.shape[1]} and W >= 1, got {tuple(weight.shape)}",
        "pass one filter of W >= 1 taps a channel; nn.Conv1d's weight (D, 1, W) needs .squeeze(1)",
    )
    if bias is not None:
        require_shape(op, "bias", bias, (x.shape[1],), "(D,)")
    require_activation(op, activation)


@per_layout
def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    activation: str | None,
) -> None:
    require(x.dim() == 3, f"{NAME}: x must have shape (B, D, L), got {tuple(x.shape)}", "reshape x")
    batch, channels, length = x.shape
    require(
        length > 0, f"{NAME}: the length L must be at least 1, got x of shape {tuple(x.shape)}", "drop empty sequences"
    )
    require(channels > 0, f"{NAME}: there must be a channel, got x of shape {tuple(x.shape)}", "pass D >= 1 channels")
    check_convolution(NAME, x, weight, bias, activation)
    if initial_states is not None:
        require_float(NAME, "initial_states", initial_states)
        require_device(NAME, "initial_states", initial_states, x.device)
        require_shape(NAME, "initial_states", initial_states, (batch, channels, weight.shape[1] - 1), "(B, D, W - 1)")
    if seq_idx is not None:
        require(
            seq_idx.dtype == torch.int32,
            f"{NAME}: seq_idx must be int32, got {seq_idx.dtype}",
            "convert it with seq_idx.int()",
        )
        require_device(NAME, "seq_idx", seq_idx, x.device)
        require_shape(NAME, "seq_idx", seq_idx, (batch, length), "(B, L)")


def _empty_final(x: Tensor, weight: Tensor, initial: Tensor | None) -> Tensor:
    """Return uninitialised final states: in the layout of the initial ones, and no less precise than they or x."""
    if initial is None:
        return x.new_empty(x.shape[0], x.shape[1], weight.shape[1] - 1)
    return empty_in_order(initial, torch.promote_types(x.dtype, initial.dtype))


@torch.library.custom_op("mamba_kernels::causal_conv1d", mutates_args=(), device_types=("cpu", "cuda"))
def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
    keep_final: bool,
) -> tuple[Tensor, Tensor]:
    final = _empty_final(x, weight, initial_states) if keep_final else None
    y = kernels_on(x.device).forward(x, weight, bias, seq_idx, initial_states, silu, reverse, final)
    return y, x.new_empty(0) if final is None else final


@_convolve.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
    keep_final: bool,
) -> tuple[Tensor, Tensor]:
    return empty_in_order(x), _empty_final(x, weight, initial_states) if keep_final else x.new_empty(0)


@torch.library.custom_op("mamba_kernels::causal_conv1d_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _differentiate(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dweight, dbias, dinitial = kernels_on(x.device).backward(
        dy, dfinal, x, weight, bias, seq_idx, initial_states, silu, reverse
    )
    # An operator cannot return None: what has no gradient gets one of size 0.
    return dx, dweight, x.new_empty(0) if dbias is None else dbias, x.new_empty(0) if dinitial is None else dinitial


@_differentiate.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias, dinitial = (x.new_empty(0) if t is None else empty_in_order(t) for t in (bias, initial_states))
    return empty_in_order(x), empty_in_order(weight), dbias, dinitial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.reverse, ctx.keeps_final = inputs
    # Final states that nobody uses then cost no gradient of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    dfinal = dfinal if ctx.keeps_final else None
    dx, dweight, dbias, dinitial = _backward_operator(dy, dfinal, *tensors, ctx.silu, ctx.reverse)
    has_bias, has_initial = tensors[2] is not None, tensors[4] is not None
    return dx, dweight, dbias if has_bias else None, None, dinitial if has_initial else None, None, None, None


_operator = register_derivative(_convolve, _backward, setup_context=_save)
_backward_operator = refuse_second_derivative(NAME, _differentiate)


@register_decomposition(_convolve)
def _decompose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    reverse: bool,
    keep_final: bool,
) -> tuple[Tensor, Tensor]:
    y, final = causal_conv1d_reference(x, weight, bias, seq_idx, initial_states, silu, reverse)
    return y, final if keep_final else x.new_empty(0)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own causal filter, and apply an activation.

    y[b, d, l] = activation(bias[d] + sum_w weight[d, w] x[b, d, l - (W - 1) + w]). Follows the shapes and the argument
    order of causal-conv1d's ``causal_conv1d_fn``, for any width. Arithmetic is float32, float64 where an input is.
    Tensors may have any strides; the output and each gradient are dense in the dimension order of their input. Under
    autocast x is cast to its dtype.

    Args:
        x: Input (B, D, L), L >= 1.
        weight: Filters (D, W), W >= 1; the last tap meets the current position.
        bias: Bias (D,).
        seq_idx: Segment ids (B, L) int32. No tap reaches across a change of value; ``initial_states`` reach the leading
            segment only if its id is 0; negative is padding, which counts as if it were not there: its output is 0 and
            no gradient flows.
        initial_states: The W - 1 inputs before the first position (B, D, W - 1), oldest first; zeros if None.
        return_final_states: Whether to return the last W - 1 inputs too.
        activation: None, "silu" or its other name "swish".
        reverse: Whether to read from the last position to the first; the states stay in reading order, oldest first.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output (B, D, L) in the dtype of x, or the pair of it and the final states (B, D, W - 1): the inputs up to
        the last position read that is not padding, oldest first, zeros before the start of its segment; in x's dtype
        or the initial states' where that is wider. Gradients flow through both states.

    Raises:
        KernelInputError: If a shape, dtype, device or activation is refused.
        BackendError: If the backend cannot run on the tensors' device; from the second derivative of a backend other
            than "reference".
    """
    _check(x, weight, bias, seq_idx, initial_states, activation)
    x = cast_for_autocast(x)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    options = (x, weight, bias, seq_idx, initial_states, activation is not None, reverse)
    if chosen == "reference":
        y, final_states = causal_conv1d_reference(*options)
    else:
        y, final_states = _operator(*options, return_final_states)
    return (y, final_states) if return_final_states else y
