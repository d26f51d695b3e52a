"""The causal convolution step by step: the states are its memory and change in place.

Dimensions: B batch, D channels, T new positions, W width, S columns of the state, R rows of the pool of states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels import backend as backends
from mamba_kernels.causal_conv1d.op import check_convolution
from mamba_kernels.checks import cast_for_autocast, compute_dtype, require, require_device, require_float
from mamba_kernels.layout import empty_in_order, in_order_of

NAME = "causal_conv1d_update"


def _check_integers(name: str, x: Tensor, batch: int, device: torch.device) -> None:
    require(
        x.dtype in (torch.int32, torch.int64) and tuple(x.shape) == (batch,),
        f"{NAME}: {name} must be int32 of shape (B,) = ({batch},), got {x.dtype} of shape {tuple(x.shape)}",
        f"pass one integer a sequence of the batch, converted with {name}.int()",
    )
    require_device(NAME, name, x, device)


def _check(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> None:
    require(
        x.dim() in (2, 3) and x.shape[-1] > 0 and x.shape[1] > 0,
        f"{NAME}: x must have shape (B, D) or (B, D, T) with D, T >= 1, got {tuple(x.shape)}",
        "reshape x",
    )
    check_convolution(NAME, x, weight, bias, activation)
    require_float(NAME, "conv_state", conv_state)
    require_device(NAME, "conv_state", conv_state, x.device)
    batch, channels, history = x.shape[0], x.shape[1], weight.shape[1] - 1
    rows_fit = conv_state_indices is not None or (conv_state.dim() > 0 and conv_state.shape[0] == batch)
    require(
        conv_state.dim() == 3 and rows_fit and conv_state.shape[1] == channels and conv_state.shape[2] >= history,
        f"{NAME}: conv_state must have shape (B, D, S) = ({batch}, {channels}, at least W - 1 = {history}), any number "
        f"of rows with conv_state_indices, got {tuple(conv_state.shape)}",
        f"start from torch.zeros({batch}, {channels}, {history})",
    )
    require(
        all(stride > 0 or size <= 1 for size, stride in zip(conv_state.shape, conv_state.stride(), strict=True)),
        f"{NAME}: conv_state must not be expanded, got strides {tuple(conv_state.stride())}",
        "pass conv_state.contiguous(), which can be written to",
    )
    if cache_seqlens is not None:
        _check_integers("cache_seqlens", cache_seqlens, batch, x.device)
        require(
            conv_state.shape[2] > 0,
            f"{NAME}: a ring buffer needs a column, got conv_state of shape {tuple(conv_state.shape)}",
            "leave cache_seqlens out for a filter of one tap, or give the state a column",
        )
    if conv_state_indices is not None:
        _check_integers("conv_state_indices", conv_state_indices, batch, x.device)


def _check_values(cache_seqlens_B: Tensor | None, rows_B: Tensor | None, pool: int) -> None:
    """Check what the integers are, which can't be known while a graph is traced."""
    if cache_seqlens_B is not None and cache_seqlens_B.numel() > 0:
        least = int(cache_seqlens_B.min())
        require(least >= 0, f"{NAME}: cache_seqlens must not be negative, got {least}", "count from 0")
    if rows_B is not None and rows_B.numel() > 0:
        largest = int(rows_B.max())
        require(
            largest < pool,
            f"{NAME}: conv_state_indices must be below the {pool} rows of conv_state, got {largest}",
            "index rows from 0; negative ones mark padding",
        )
        used = rows_B[rows_B >= 0]
        require(
            used.unique().numel() == used.numel(),
            f"{NAME}: conv_state_indices must not name a row twice, got {rows_B.tolist()}",
            "give each sequence a state of its own",
        )


def causal_conv1d_update_reference(
    x: Tensor,
    conv_state_RDS: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    silu: bool = False,
    cache_seqlens_B: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> Tensor:
    """Advance the states in place and return the output; differentiable in plain PyTorch's way.

    The arguments are those of `causal_conv1d_update`, their shapes already checked.
    """
    _check_values(cache_seqlens_B, rows_B, conv_state_RDS.shape[0])
    x_BDT = x if x.dim() == 3 else x[:, :, None]
    dtype = compute_dtype(x, conv_state_RDS, weight_DW, bias_D)
    new, history, columns = x_BDT.shape[2], weight_DW.shape[1] - 1, conv_state_RDS.shape[2]
    is_used_B = None if rows_B is None else rows_B >= 0
    state_BDS = conv_state_RDS if rows_B is None else conv_state_RDS[rows_B.clamp(min=0).long()]

    joint = torch.promote_types(x.dtype, conv_state_RDS.dtype)
    if cache_seqlens_B is None:
        joined_BDC = torch.cat([state_BDS.to(joint), x_BDT.to(joint)], dim=2)
        next_BDS = joined_BDC[:, :, new:]
        taps_BDC = joined_BDC[:, :, columns - history :]
    else:
        # Column c of the ring holds the inputs of the positions c, c + S, c + 2 S, ...
        position_BT = cache_seqlens_B.long()[:, None] + torch.arange(-history, new, device=x.device)
        column_BT = (position_BT % columns)[:, None].expand(-1, x_BDT.shape[1], -1)
        past_BDC = state_BDS.gather(2, column_BT[:, :, :history])
        taps_BDC = torch.cat([past_BDC.to(joint), x_BDT.to(joint)], dim=2)
        kept = min(new, columns)  # more would overwrite themselves
        next_BDS = state_BDS.scatter(
            2, column_BT[:, :, history + new - kept :], x_BDT[:, :, new - kept :].to(state_BDS)
        )

    taps_BDC, weight_DW = taps_BDC.to(dtype), weight_DW.to(dtype)
    y_BDT = (taps_BDC.unfold(2, history + 1, 1) * weight_DW[:, None]).sum(-1)
    if bias_D is not None:
        y_BDT = y_BDT + bias_D.to(dtype)[:, None]
    if silu:
        y_BDT = F.silu(y_BDT)

    if is_used_B is None or rows_B is None:
        conv_state_RDS.copy_(next_BDS)
    else:
        y_BDT = y_BDT.masked_fill(~is_used_B[:, None, None], 0.0)
        conv_state_RDS[rows_B[is_used_B].long()] = next_BDS[is_used_B].to(conv_state_RDS.dtype)
    return in_order_of(y_BDT.to(x.dtype).view(x.shape), x)


@torch.library.custom_op(
    "mamba_kernels::causal_conv1d_update", mutates_args=("conv_state",), device_types=("cpu", "cuda")
)
def _update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    if backends.runs_gpu_kernels(x.device):
        # Imported where it runs: Triton may be missing elsewhere.
        from mamba_kernels.causal_conv1d.triton_update import update

        # The values of a captured graph's replays are unknown: the caller answers for those.
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            _check_values(cache_seqlens, conv_state_indices, conv_state.shape[0])
        return update(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)
    y = causal_conv1d_update_reference(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)
    return empty_in_order(x).copy_(y)


@_update.register_fake
def _(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    return empty_in_order(x)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve new positions behind those remembered in ``conv_state``, and remember them too, in place.

    Follows causal-conv1d's ``causal_conv1d_update``. One call after the other gives what `causal_conv1d` gives at once.
    Where a gradient is asked for, the reference runs: the registered operator has none.

    Args:
        x: New input (B, D), or (B, D, T) for T positions.
        conv_state: The last S >= W - 1 inputs (B, D, S), oldest first, or a pool of R rows (R, D, S); changed in place.
        weight: Filters (D, W).
        bias: Bias (D,).
        activation: None, "silu" or its other name "swish".
        cache_seqlens: How many positions came before (B,) int32. The state is then a ring: position p is remembered in
            column p % S, and nothing is shifted. Not advanced by the call.
        conv_state_indices: The row of the pool that each sequence of the batch uses (B,) int32, no row twice; negative
            is padding, where the output is 0 and no state changes.
        backend: "auto", "reference", "cpu" or "triton"; None for the environment's choice.

    Returns:
        The output, in the shape, dtype and dimension order of x.

    Raises:
        KernelInputError: If a shape, dtype, device, index or activation is refused.
        BackendError: If the backend cannot run on the tensors' device.
    """
    _check(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    x = cast_for_autocast(x)
    chosen = backends.choose(NAME, x.device, backend, has_triton=True)
    is_differentiated = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, conv_state, weight, bias)
    )
    run = causal_conv1d_update_reference if chosen == "reference" or is_differentiated else _update
    return run(x, conv_state, weight, bias, activation is not None, cache_seqlens, conv_state_indices)
