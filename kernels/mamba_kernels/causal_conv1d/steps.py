"""Steps: what the convolution reads where there are segments and padding, the same for every kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.segments import segment_marks


def read_steps(seq_idx_BL: Tensor, width: int, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the steps of each sequence in reading order: its positions without the padding, which counts for nothing.

    Args:
        seq_idx_BL: Segment ids (B, L); negative is padding.
        width: Taps W of the filters.
        reverse: Whether to read from the last position to the first.

    Returns:
        The position of each step (B, L) int32, those past the last step standing at padding; how many steps of history
        it may read, at most W - 1, (B, L) int32; and how many steps there are (B,) int64.
    """
    length, history = seq_idx_BL.shape[1], width - 1
    reset_BL, padding_BL = segment_marks(seq_idx_BL.flip(1) if reverse else seq_idx_BL)
    steps_BL = padding_BL.to(torch.uint8).argsort(dim=1, stable=True)
    # Where the state reaches the leading segment, that one begins with the history.
    index_L = torch.arange(length, device=seq_idx_BL.device)
    begin_BL = torch.where(reset_BL.gather(1, steps_BL), index_L, -history).cummax(1).values
    reach_BL = (index_L - begin_BL).clamp(max=history)
    steps_BL = length - 1 - steps_BL if reverse else steps_BL
    return steps_BL.int().contiguous(), reach_BL.int().contiguous(), length - padding_BL.sum(1)
