"""One image: opened, decoded to its end, turned upright and brought to RGB by stated rules, or refused.

The rules of `read_image`, none of which is silent elsewhere (`mamba-apps check` counts the modes it meets):

- The content decides, not the name: a PNG named .jpg is read as a PNG.
- EXIF orientation is applied: the pixels are as a viewer shows them.
- Transparency (RGBA, LA, palette or single transparent colour) is composited on white, as a viewer shows it.
- CMYK becomes RGB by (255 - C)(255 - K) / 255; an embedded colour profile is not applied.
- 16-bit grey is scaled from its whole range, v / 257 rounded, so images stay comparable; nothing is clipped.
- Floating-point and 32-bit images state no range and are refused; so is a file of several frames or pages.
- A JPEG that holds a second picture (a phone's preview) is its first.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from mamba_datasets.errors import DataError
from mamba_datasets.tree import LEAVE_OUT, Medium

# Decoders are attack surface: only these are tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
IMAGE = Medium("image", SUFFIXES)
# Pillow's own mark, 256 MiB as RGB: beyond it a small file may fill the memory.
MAX_PIXELS = 89_478_485

REPLACE = f"replace it, or {LEAVE_OUT}"
_SAVE = f"save it as 8- or 16-bit, or {LEAVE_OUT}"

# Warning filters belong to the process, not to the thread.
_filters = threading.Lock()


def read_image(path: str | Path, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Read one image by the rules above.

    Args:
        path: The file.
        mode: "RGB", or "L" for 8-bit grey.

    Returns:
        The decoded image, in memory.

    Raises:
        DataError: The file is missing, empty, truncated, damaged, no image, too large to be decoded safely, animated,
            or of a mode without a stated rule.
    """
    return to_mode(load_image(io.BytesIO(read_bytes(path)), path), path, mode)


def read_bytes(path: str | Path) -> bytes:
    """Return what a regular file holds, or raise a `DataError`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(path, "file", "expected an image, found a folder or device", "name a file")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(path, "file", "no such file", "check the path") from None
    except OSError as error:
        raise DataError(path, "file", f"cannot be read: {error.strerror}", "check the disk and permissions") from None


def load_image(file: BinaryIO, name: str | Path) -> Image.Image:
    """Decode an image to its end and turn it upright, in the mode that the file has.

    Args:
        file: The open file, or its bytes in memory.
        name: Its name, for errors.

    Returns:
        The decoded image.

    Raises:
        DataError: As in `read_image`.
    """
    image = _open(file, name)
    if image.width * image.height > MAX_PIXELS:
        raise _bomb(name)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        found = "expected one picture, found several frames or pages"
        raise DataError(name, "image", found, f"save one of them, or {LEAVE_OUT}")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # a decoder fed damaged bytes raises anything
        raise DataError(name, "image", f"is truncated or damaged ({_one_line(error)})", REPLACE) from None
    try:
        with _quiet():
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise DataError(name, "EXIF", f"its orientation cannot be read ({_one_line(error)})", REPLACE) from None
    return image


def to_mode(image: Image.Image, name: str | Path, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Bring a decoded image to RGB or 8-bit grey by the rules above.

    Args:
        image: The image.
        name: Its name, for errors.
        mode: "RGB" or "L".

    Returns:
        The image itself where it has that mode already.

    Raises:
        DataError: There is no rule for its mode or its range.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image, name)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise DataError(name, "mode", f"{image.mode} has no rule to become {mode}", _SAVE)
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's talk of harmless trifles off the terminal; its warning of a bomb is an error."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _open(file: BinaryIO, name: str | Path) -> Image.Image:
    """Read the header."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise DataError(name, "file", "is empty (0 bytes)", REPLACE)
    try:
        with _quiet():
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(name) from None
    except Image.UnidentifiedImageError:
        found = f"text ({head[:24].decode()!r})" if _is_text(head) else "something else"
        known = ", ".join(FORMATS)
        raise DataError(name, "file", f"is no image: expected {known}, found {found}", REPLACE) from None
    except Exception as error:
        raise DataError(name, "header", f"is damaged ({_one_line(error)})", REPLACE) from None


def _from_16_bit(image: Image.Image, name: str | Path) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        expected = f"expected values of 16 bits (0 to 65535), found {low} to {high}"
        raise DataError(name, "mode I", expected, _SAVE)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _bomb(name: str | Path) -> DataError:
    expected = f"at most {MAX_PIXELS:,} pixels are decoded, its header announces more (a decompression bomb?)"
    return DataError(name, "size", expected, f"scale it down, or {LEAVE_OUT}")


def _is_text(head: bytes) -> bool:
    return head[:24].isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head[:24])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
