"""The states that packed sequences leave behind, to go on from step by step.

Dimensions: T tokens of all sequences, D channels, B sequences, S columns of the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels.checks import require, require_device, require_float
from mamba_kernels.layout import dimension_order

NAME = "causal_conv1d_varlen_states"


def _check(x: Tensor, cu_seqlens: Tensor, state_len: int) -> None:
    require_float(NAME, "x", x)
    require(x.dim() == 2, f"{NAME}: x must have shape (T, D), got {tuple(x.shape)}", "drop the batch dimension of 1")
    require(
        cu_seqlens.dtype in (torch.int32, torch.int64) and cu_seqlens.dim() == 1 and cu_seqlens.shape[0] >= 2,
        f"{NAME}: cu_seqlens must be int32 of shape (B + 1,), got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}",
        "pass the start of each sequence and the end of the last",
    )
    require_device(NAME, "cu_seqlens", cu_seqlens, x.device)
    require(state_len >= 1, f"{NAME}: state_len must be at least 1, got {state_len}", "pass the state's columns S")


def _tokens(cu_seqlens: Tensor, state_len: int, tokens: int) -> Tensor:
    """Return the token each column holds (B, S); ``tokens``, one past the last, where a sequence is too short."""
    begin_B1, end_B1 = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    token_BS = end_B1 + torch.arange(-state_len, 0, device=cu_seqlens.device)
    return torch.where(token_BS < begin_B1, tokens, token_BS)


def _empty_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    sequences, channels = cu_seqlens.shape[0] - 1, x.shape[1]
    if dimension_order(x) == [0, 1]:
        return x.new_empty(sequences, state_len, channels).transpose(1, 2)
    return x.new_empty(sequences, channels, state_len)


@torch.library.custom_op("mamba_kernels::causal_conv1d_varlen_states", mutates_args=())
def _varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    steps = cu_seqlens.diff()
    require(
        int(cu_seqlens[0]) >= 0 and int(steps.min()) >= 0 and int(cu_seqlens[-1]) <= x.shape[0],
        f"{NAME}: cu_seqlens must not decrease and stay within 0 and T = {x.shape[0]}, got {cu_seqlens.tolist()}",
        "pass the running total of the sequences' lengths, from 0 on",
    )
    token_BS = _tokens(cu_seqlens, state_len, x.shape[0])
    padded_TD = torch.cat([x, x.new_zeros(1, x.shape[1])])
    return _empty_states(x, cu_seqlens, state_len).copy_(padded_TD[token_BS].transpose(1, 2))


@_varlen_states.register_fake
def _(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    return _empty_states(x, cu_seqlens, state_len)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, cu_seqlens, ctx.state_len = inputs
    ctx.tokens, ctx.is_channel_last = x.shape[0], dimension_order(x) == [0, 1]
    ctx.save_for_backward(cu_seqlens)


def _backward(ctx: Any, dstates: Tensor) -> tuple[Tensor, None, None]:
    token_BS = _tokens(ctx.saved_tensors[0], ctx.state_len, ctx.tokens)
    dx = dstates.new_zeros(ctx.tokens + 1, dstates.shape[1])
    dx = dx.index_add(0, token_BS.flatten(), dstates.transpose(1, 2).flatten(0, 1))[: ctx.tokens]
    return dx if ctx.is_channel_last else dx.t().contiguous().t(), None, None


_varlen_states.register_autograd(_backward, setup_context=_save)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Return the last inputs of each of several packed sequences, as `causal_conv1d_update` wants them.

    Follows causal-conv1d's function of this name. It is the same plain PyTorch on every device.

    Args:
        x: The packed sequences' inputs (T, D), one after the other.
        cu_seqlens: Where each sequence starts and the last ends (B + 1,) int32.
        state_len: Columns S >= 1 of the states.

    Returns:
        The states (B, D, S): the last S inputs of each sequence, oldest first, zeros before its start.

    Raises:
        KernelInputError: If a shape, dtype or device is refused, or ``cu_seqlens`` decreases or ends past T.
    """
    _check(x, cu_seqlens, state_len)
    return _varlen_states(x, cu_seqlens, state_len)
