"""What ``seq_idx`` means, in one place: where a segment starts and where there is only padding."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_marks(seq_idx_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the state is reset and where a position is padding, for positions in reading order.

    The state carries the id of the segment it belongs to, which is 0 before the first position; a position with
    another id resets it, a negative one leaves it alone. So an initial state reaches the leading segment only if its
    id is 0, and padding in the middle of a segment does not cut it.

    Args:
        seq_idx_BL: Segment ids (B, L), any integer dtype; negative is padding.

    Returns:
        ``reset`` (B, L) bool, true at the first position of each segment that the state does not reach, and ``padding``
        (B, L) bool.
    """
    padding_BL = seq_idx_BL < 0
    # The id the state carries before position t: the nearest id to the left that is no padding. Found by doubling, in
    # operations that every exporter knows.
    carried_BL = torch.nn.functional.pad(seq_idx_BL, (1, 0))[:, :-1]
    length = seq_idx_BL.shape[1]
    reach = 1
    while reach < length:
        left_BL = torch.nn.functional.pad(carried_BL, (reach, 0))[:, :-reach]
        carried_BL = torch.where(carried_BL < 0, left_BL, carried_BL)
        reach *= 2
    return ~padding_BL & (seq_idx_BL != carried_BL), padding_BL


def segment_bits(seq_idx_BL: Tensor) -> Tensor:
    """Return `segment_marks` as one number (B, L) int8, for GPU kernels: bit 0 for a token, bit 1 for a reset."""
    reset_BL, padding_BL = segment_marks(seq_idx_BL)
    return ((~padding_BL).to(torch.int8) + 2 * reset_BL.to(torch.int8)).contiguous()
