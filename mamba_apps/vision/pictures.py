"""What a person gives as a picture: a file, or one that was opened."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mamba_apps.errors import UserError
from mamba_datasets.images.read import read_image, to_mode


def as_picture(image: str | Path | Image.Image) -> Image.Image:
    """Return a picture as RGB.

    Args:
        image: A file, or a PIL image.

    Raises:
        UserError: It is something else, such as an array.
        DataError: The file is no image or broken, or the picture has a mode without a stated rule.
    """
    if isinstance(image, Image.Image):
        return to_mode(image, "the image")
    if isinstance(image, (str, Path)):
        return read_image(image)
    raise UserError(
        f"an image is a {type(image).__name__}", "give a file, or a PIL image: PIL.Image.fromarray(array_of_uint8)"
    )
