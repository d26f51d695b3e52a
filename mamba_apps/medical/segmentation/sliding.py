"""Scores of a volume of any size by overlapping windows, weighted towards their centres; held a few layers at a time.

Dimensions in names: C channels, K classes, z, y, x the axes in the plan's order (z is 1 for a flat picture) and d, h, w
the window's. Memory grows with a layer of the volume, y times x, and with the window's depth, not with the volume's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mamba_apps.errors import UserError

OVERLAP = 0.5
_SIGMA = 1 / 8  # of the window's side, as nnU-Net weighs windows
_LEAST = 1e-4  # of the weight at the centre, so that a corner that one window alone reaches is divided by no zero
_ON_DEVICE = 4 * 2**30  # bytes of scores that may lie on a GPU while their layers are not complete


def slide(
    predict: Callable[[Tensor], Tensor],
    image_Czyx: np.ndarray,
    window: Sequence[int],
    *,
    classes: int,
    overlap: float = OVERLAP,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    on_window: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Yield the mean scores of a volume from its first layer to its last, a few complete layers at a time.

    Args:
        predict: Scores (B, K, d, h, w) of windows (B, C, d, h, w) on ``device``.
        image_Czyx: The volume, which may be mapped from a file; one smaller than the window is padded with zeros, as
            many before it as after.
        window: d, h, w that ``predict`` reads.
        classes: K.
        overlap: The part of a window that the next one covers again, in [0, 1).
        batch_size: Windows a call.
        device: Where ``predict`` wants its windows.
        on_window: Called with how many windows are done, and of how many.

    Yields:
        Scores (K, layers, y, x), float32, on ``device`` or, where they would take much of it, in main memory.

    Raises:
        UserError: If the overlap or the batch size is out of range.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap}", "give a part of the window in [0, 1)")
    if batch_size < 1:
        raise UserError(f"{batch_size} windows a call", "give at least 1")
    size = tuple(int(side) for side in image_Czyx.shape[1:])
    starts = [_starts(side, part, overlap) for side, part in zip(size, window, strict=True)]
    margins = [max(part - side, 0) // 2 for side, part in zip(size, window, strict=True)]
    corners = list(itertools.product(*starts))
    calls = [corners[first : first + batch_size] for first in range(0, len(corners), batch_size)]
    depth = window[0] + max(call[-1][0] - call[0][0] for call in calls)
    layer = tuple(max(side, part) for side, part in zip(size[1:], window[1:], strict=True))
    fits = 4 * (classes + 1) * depth * math.prod(layer) <= _ON_DEVICE
    home = torch.device(device if fits else "cpu")
    weight = window_weights(window).to(home)
    # the layers from the next window's on: their weighted scores, and the weights that these were given
    held, given = torch.zeros(classes, depth, *layer, device=home), torch.zeros(depth, *layer, device=home)
    followers = [call[0][0] for call in calls[1:]] + [max(size[0], window[0])]
    done = 0
    for call, following in zip(calls, followers, strict=True):
        first = call[0][0]
        scores = predict(torch.stack([_cut(image_Czyx, corner, window, margins) for corner in call]).to(device))
        for corner, score in zip(call, scores.float().to(home), strict=True):
            at = tuple(
                slice(start, start + part) for start, part in zip((corner[0] - first, *corner[1:]), window, strict=True)
            )
            held[(slice(None), *at)].addcmul_(score, weight)
            given[at] += weight
        done += len(call)
        if on_window is not None:
            on_window(done, len(corners))
        complete = following - first
        if complete:
            mean = held[:, :complete] / given[:complete]
            yield mean[(slice(None), *(slice(skip, skip + side) for skip, side in zip(margins, size, strict=True)))]
            for sums in (held, given[None]):
                sums[:, : depth - complete] = sums[:, complete:].clone()
                sums[:, depth - complete :] = 0


def window_weights(window: Sequence[int]) -> Tensor:
    """Return the weight of each voxel of a window, a Gaussian of 1 at its centre."""
    weight = torch.ones(())
    for part in window:
        distance = torch.arange(part) - (part - 1) / 2
        along = torch.exp(-0.5 * (distance / (part * _SIGMA)) ** 2)
        weight = weight[..., None] * along / along.max()
    return weight.clamp(min=_LEAST)


def mirrored(predict: Callable[[Tensor], Tensor], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Return the mean of ``predict`` over all flips of its windows along these spatial axes, each flipped back."""
    flips = [
        [axis + 2 for axis in some] for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)
    ]

    def mean(windows: Tensor) -> Tensor:
        total = torch.zeros((), device=windows.device)
        for flip in flips:
            total = total + predict(windows.flip(flip)).float().flip(flip)
        return total / len(flips)

    return mean


def _starts(side: int, part: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis: evenly spread from its beginning to its end."""
    if side <= part:
        return [0]
    count = math.ceil((side - part) / max(part * (1 - overlap), 1)) + 1
    return [round(place * (side - part) / (count - 1)) for place in range(count)]


def _cut(image_Czyx: np.ndarray, corner: Sequence[int], window: Sequence[int], margins: Sequence[int]) -> Tensor:
    """Return a window, with margins before and after where the volume is smaller."""
    at = tuple(slice(start, start + part) for start, part in zip(corner, window, strict=True))
    found = torch.from_numpy(np.array(image_Czyx[(slice(None), *at)]))
    if tuple(found.shape[1:]) == tuple(window):
        return found
    padded = found.new_zeros(len(found), *window)
    inside = (slice(skip, skip + side) for skip, side in zip(margins, found.shape[1:], strict=True))
    padded[(slice(None), *inside)] = found
    return padded
