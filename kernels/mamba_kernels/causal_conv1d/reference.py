"""The causal convolution in plain PyTorch: the definition the fast paths are tested against.

Dimensions: B batch, D channels, L length, W width, P = W - 1 + L columns of the input behind its history.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_kernels.checks import compute_dtype
from mamba_kernels.layout import in_order_of
from mamba_kernels.segments import segment_marks


def _to_front(x: Tensor, place_BL: Tensor) -> Tensor:
    """Return ``x`` (B, ..., L) with column l moved to column ``place_BL[:, l]``; L is past the end, others get 0."""
    length = x.shape[-1]
    place = place_BL.view(-1, *[1] * (x.dim() - 2), length).expand(x.shape)
    return x.new_zeros(*x.shape[:-1], length + 1).scatter(-1, place, x)[..., :length]


def _taps(x_BDP: Tensor, weight_DW: Tensor, segment_BP: Tensor | None) -> Tensor:
    """Return the sum of the taps (B, D, L), leaving out those that read another segment."""
    width = weight_DW.shape[1]
    length = x_BDP.shape[2] - (width - 1)
    y_BDL = x_BDP.new_zeros(*x_BDP.shape[:2], length)
    for tap in range(width):
        tap_BDL = x_BDP[:, :, tap : tap + length]
        if segment_BP is not None:
            same_BL = segment_BP[:, tap : tap + length] == segment_BP[:, width - 1 :]
            tap_BDL = torch.where(same_BL[:, None], tap_BDL, 0.0)
        y_BDL = y_BDL + weight_DW[:, tap, None] * tap_BDL
    return y_BDL


def causal_conv1d_reference(
    x_BDL: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None = None,
    seq_idx_BL: Tensor | None = None,
    initial_states_BDW: Tensor | None = None,
    silu: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve tap by tap; differentiable any number of times.

    The arguments are those of `causal_conv1d`, already checked; the result is the output and the final states.
    Padding is taken out first and put back last, so that a sequence gives what it would give without it.
    """
    like, initial = x_BDL, initial_states_BDW
    out_dtype = x_BDL.dtype
    final_dtype = out_dtype if initial is None else torch.promote_types(out_dtype, initial.dtype)
    dtype = compute_dtype(x_BDL, weight_DW, bias_D, initial)
    x_BDL, weight_DW = x_BDL.to(dtype), weight_DW.to(dtype)
    history = weight_DW.shape[1] - 1
    batch, channels, length = x_BDL.shape

    if reverse:
        x_BDL = x_BDL.flip(2)
        seq_idx_BL = None if seq_idx_BL is None else seq_idx_BL.flip(1)
    padding_BL = rank_BL = segment_BP = None
    if seq_idx_BL is not None:
        reset_BL, padding_BL = segment_marks(seq_idx_BL)
        # Whatever stands in the padding, even NaN, reaches neither the result nor a gradient.
        x_BDL = x_BDL.masked_fill(padding_BL[:, None], 0.0)
        rank_BL = (~padding_BL).cumsum(1) - 1
        place_BL = torch.where(padding_BL, length, rank_BL)
        x_BDL = _to_front(x_BDL, place_BL)
        segment_BP = F.pad(_to_front(reset_BL.long(), place_BL).cumsum(1), (history, 0))

    before_BDW = x_BDL.new_zeros(batch, channels, history) if initial is None else initial.to(dtype)
    x_BDP = torch.cat([before_BDW, x_BDL], dim=2)
    y_BDL = _taps(x_BDP, weight_DW, segment_BP)
    if bias_D is not None:
        y_BDL = y_BDL + bias_D.to(dtype)[:, None]
    if silu:
        y_BDL = F.silu(y_BDL)

    final_BDW = x_BDP[:, :, length:]
    if padding_BL is not None and rank_BL is not None and segment_BP is not None:
        y_BDL = y_BDL.gather(2, rank_BL.clamp(min=0)[:, None].expand(-1, channels, -1))
        y_BDL = y_BDL.masked_fill(padding_BL[:, None], 0.0)
        column_BW = rank_BL[:, -1:] + 1 + torch.arange(history, device=rank_BL.device)
        final_BDW = x_BDP.gather(2, column_BW[:, None].expand(-1, channels, -1))
        last_B1 = segment_BP.gather(1, (rank_BL[:, -1:] + history).clamp(min=0))
        final_BDW = torch.where((segment_BP.gather(1, column_BW) == last_B1)[:, None], final_BDW, 0.0)
    if reverse:
        y_BDL = y_BDL.flip(2)
    final_BDW = final_BDW.to(final_dtype)
    final_BDW = final_BDW.contiguous() if initial is None else in_order_of(final_BDW, initial)
    return in_order_of(y_BDL.to(out_dtype), like), final_BDW
