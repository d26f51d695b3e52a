"""The body in an image: what is not zero in some channel, with its holes."""

from __future__ import annotations

import numpy as np

from mamba_datasets.errors import DataError


def body_of(image: np.ndarray) -> np.ndarray:
    """Return where a voxel of any channel is not zero, holes included.

    Args:
        image: (C, *axes).

    Returns:
        Booleans (*axes).
    """
    body = image[0] != 0
    for channel in image[1:]:
        body |= channel != 0
    if body.all():
        return body
    try:
        from scipy import ndimage
    except ImportError:
        raise DataError("crop", "body", "scipy is not installed", "pip install 'mamba-apps[medical]'") from None
    return np.asarray(ndimage.binary_fill_holes(body))


def box_of(body: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the first index of a body along each axis and the one behind its last; all where there is no body."""
    bounds = []
    for axis in range(body.ndim):
        others = tuple(other for other in range(body.ndim) if other != axis)
        places = np.flatnonzero(body.any(others))
        bounds.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, body.shape[axis]))
    return tuple(bounds)
