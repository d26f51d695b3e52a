"""Pictures of any size through a network that reads one size: overlapping windows whose scores are averaged.

Dimensions in names: C channels, K classes, H and W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_apps.errors import UserError

OVERLAP = 1 / 3


def slide(
    predict: Callable[[Tensor], Tensor],
    image_CHW: Tensor,
    window: tuple[int, int],
    *,
    overlap: float = OVERLAP,
    batch_size: int = 8,
    fill: Sequence[int] = (0, 0, 0),
) -> Iterator[Tensor]:
    """Yield bands of scores from top to bottom; one that was yielded is final.

    Only the rows that windows to come still reach are held, so that memory grows with the width of the picture and
    not with its height. Where one window covers a picture the scores are exactly the network's.

    Args:
        predict: From windows (B, C, h, w) to scores (B, K, h, w).
        image_CHW: The picture; one smaller than the window is padded at the right and the bottom.
        window: The height and width (h, w) that ``predict`` reads.
        overlap: The part of a window that the next one covers again, in [0, 1).
        batch_size: Windows a call.
        fill: The value of padding for each channel.

    Yields:
        Scores (K, rows, W) of the next rows.

    Raises:
        UserError: If the overlap is out of range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap}", "give a part of the window in [0, 1)")
    height, width = image_CHW.shape[-2:]
    padded = _padded(image_CHW, window, fill)
    tops, lefts = (_starts(side, part, overlap) for side, part in zip(padded.shape[-2:], window, strict=True))
    across = torch.zeros(padded.shape[-1])
    for left in lefts:
        across[left : left + window[1]] += 1
    down = torch.zeros(window[0])  # how many windows have added to each row that is held
    held: Tensor | None = None
    for top, following in pairwise([*tops, padded.shape[-2]]):
        down += 1
        band = _row_of_windows(predict, padded[:, top : top + window[0]], lefts, window[1], batch_size)
        if held is not None:
            band += held
        done = following - top
        count = (down[:done, None] * across).to(band.device)
        yield (band[:, :done] / count)[:, : height - top, :width]
        held, down = F.pad(band[:, done:], (0, 0, 0, done)), F.pad(down[done:], (0, done))


def resized_labels(scores_KHW: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class of the highest score at each pixel (H, W) after resizing the scores bilinearly to ``size``.

    One class is resized at a time: all of them at a picture's own size may not fit into memory.
    """
    best = torch.full(tuple(size), -math.inf, device=scores_KHW.device)
    labels = torch.zeros(tuple(size), dtype=torch.int64, device=scores_KHW.device)
    for number, score in enumerate(scores_KHW):
        larger = F.interpolate(score[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
        higher = larger > best
        best = torch.where(higher, larger, best)
        labels.masked_fill_(higher, number)
    return labels


def _row_of_windows(
    predict: Callable[[Tensor], Tensor], rows_ChW: Tensor, lefts: Sequence[int], width: int, batch_size: int
) -> Tensor:
    """Return the sum of the scores (K, h, W) of the windows that begin at ``lefts``."""
    for first in range(0, len(lefts), batch_size):
        some = lefts[first : first + batch_size]
        scores = predict(torch.stack([rows_ChW[..., left : left + width] for left in some])).float()
        if first == 0:
            total = scores.new_zeros(*scores.shape[1:3], rows_ChW.shape[-1])
        for left, score in zip(some, scores, strict=True):
            total[..., left : left + width] += score
    return total


def _starts(side: int, part: int, overlap: float) -> list[int]:
    """Return where windows of ``part`` begin that cover ``side``; the last ends at its end."""
    stride = max(math.ceil(part * (1 - overlap)), 1)
    count = math.ceil((side - part) / stride) + 1
    return [min(number * stride, side - part) for number in range(count)]


def _padded(image_CHW: Tensor, window: tuple[int, int], fill: Sequence[int]) -> Tensor:
    height, width = (max(side, part) for side, part in zip(image_CHW.shape[-2:], window, strict=True))
    if (height, width) == tuple(image_CHW.shape[-2:]):
        return image_CHW
    padded = torch.tensor(fill, dtype=image_CHW.dtype, device=image_CHW.device)[:, None, None].repeat(1, height, width)
    padded[:, : image_CHW.shape[-2], : image_CHW.shape[-1]] = image_CHW
    return padded
