"""Images: read and checked, sorted into classes or paired with masks, streamed from chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mamba_datasets.images.read import read_image
from mamba_datasets.lazy import lazily

if TYPE_CHECKING:
    from mamba_datasets.images.folder import ImageFolder
    from mamba_datasets.images.masks import read_mask
    from mamba_datasets.images.pairs import ImagePairs
    from mamba_datasets.images.streaming import StreamingImages, StreamingLoader, optimize_folder

__all__ = [
    "read_image",
    "ImageFolder",
    "read_mask",
    "ImagePairs",
    "optimize_folder",
    "StreamingImages",
    "StreamingLoader",
]

# What needs torch or litdata is imported when it is asked for, so that checking a folder does not wait for it.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "ImageFolder": "folder",
        "ImagePairs": "pairs",
        "read_mask": "masks",
        "optimize_folder": "streaming",
        "StreamingImages": "streaming",
        "StreamingLoader": "streaming",
    },
)
