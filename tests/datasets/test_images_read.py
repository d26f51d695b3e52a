"""One image: every kind of bad file has its one line, and every mode its stated rule."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mamba_datasets.errors import DataError
from mamba_datasets.images import read_image

SEED = np.random.default_rng(0)
PIXELS = SEED.integers(0, 256, (24, 32, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header announces 900 million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    other = Image.fromarray(255 - PIXELS)
    return saved(PICTURE, kind, save_all=True, append_images=[other])


def huge(size: tuple[int, int]) -> bytes:
    return saved(Image.new("1", size), "PNG")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: saved(PICTURE, "JPEG")[:-200], r"image: is truncated or damaged \(.*truncated"),
    "truncated.png": (lambda: saved(PICTURE, "PNG")[:-200], r"image: is truncated or damaged"),
    "truncated.webp": (lambda: saved(PICTURE, "WEBP", lossless=True)[:-200], r"(image|header): is (truncated|damaged)"),
    "truncated.tif": (lambda: saved(PICTURE, "TIFF")[:-200], r"image: is truncated or damaged"),
    "header.png": (lambda: saved(PICTURE, "PNG")[:20], r"header: is damaged|file: is no image"),
    "page.jpg": (lambda: b"<html>404 not found</html>", r"file: is no image: .* found text \('<html>404"),
    "binary.jpg": (lambda: b"\x00\x01\x02\x03" * 40, r"file: is no image: .* found something else"),
    "empty.jpg": (lambda: b"", r"file: is empty \(0 bytes\)"),
    "bomb.png": (bomb, r"size: at most 89,478,485 pixels are decoded"),
    "large.png": (lambda: huge((10000, 10000)), r"size: at most 89,478,485 pixels are decoded"),
    "frames.gif": (lambda: frames("GIF"), r"image: expected one picture, found several frames or pages"),
    "frames.png": (lambda: frames("PNG"), r"image: expected one picture"),
    "frames.webp": (lambda: frames("WEBP"), r"image: expected one picture"),
    "pages.tif": (lambda: frames("TIFF"), r"image: expected one picture"),
    "float.tif": (lambda: saved(Image.new("F", (4, 4), 0.5), "TIFF"), r"mode: F has no rule to become RGB"),
    "lab.tif": (lambda: saved(Image.new("LAB", (4, 4)), "TIFF"), r"mode: LAB has no rule"),
    "wide.tif": (lambda: saved(Image.new("I", (4, 4), 70000), "TIFF"), r"mode I: expected values of 16 bits"),
    "vector.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"file: is no image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_has_its_one_line(name: str, tmp_path: Path) -> None:
    content, line = BAD[name]
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(DataError, match=line) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "leave it out" in caught.value.remedy


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "missing.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(DataError, match="found a folder or device"):
            read_image(path)


def read(image: Image.Image, kind: str, path: Path, mode: str = "RGB", **options: object) -> np.ndarray:
    path.write_bytes(saved(image, kind, **options))
    return np.asarray(read_image(path, mode))


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(PICTURE, "PNG", tmp_path / "x.jpg"), PIXELS)


def test_one_pixel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", tmp_path / "x.png"), [[[1, 2, 3]]])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str, tmp_path: Path) -> None:
    ink = Image.new("CMYK", (16, 16), (51, 102, 0, 51))
    got = read(ink, kind, tmp_path / "x", **({"quality": 100} if kind == "JPEG" else {}))
    rule = [(255 - c) * (255 - 51) / 255 for c in (51, 102, 0)]
    np.testing.assert_allclose(got, np.broadcast_to(rule, got.shape), atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_16_bit_grey_is_scaled_from_the_whole_range(kind: str, mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    got = read(Image.fromarray(values), kind, tmp_path / "x", mode)
    want = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(got if mode == "L" else got[..., 1], want)


def test_palette(tmp_path: Path) -> None:
    palette = PICTURE.quantize(16)
    np.testing.assert_array_equal(read(palette, "PNG", tmp_path / "x.png"), np.asarray(palette.convert("RGB")))


def clear_palette() -> tuple[Image.Image, dict[str, object]]:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    return image, {"transparency": 0}


def half_clear(mode: str) -> tuple[Image.Image, dict[str, object]]:
    image = Image.new("RGBA", (4, 4), (0, 0, 255, 255)).convert(mode)
    image.putpixel((0, 0), (255, 0, 0, 0) if mode == "RGBA" else (0, 0))
    return image, {}


def clear_colour() -> tuple[Image.Image, dict[str, object]]:
    image = Image.new("RGB", (4, 4), (0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0))
    return image, {"transparency": (255, 0, 0)}


@pytest.mark.parametrize("make", [clear_palette, lambda: half_clear("RGBA"), lambda: half_clear("LA"), clear_colour])
def test_transparency_becomes_white(make: Callable[[], tuple[Image.Image, dict[str, object]]], tmp_path: Path) -> None:
    image, options = make()
    got = read(image, "PNG", tmp_path / "x.png", **options)
    assert got.shape == (4, 4, 3)
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[1, 1].tolist() == ([29, 29, 29] if image.mode == "LA" else [0, 0, 255])


def test_half_transparent_pixel_is_composited(tmp_path: Path) -> None:
    got = read(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG", tmp_path / "x.png")
    np.testing.assert_allclose(got, 127, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x),
    }[orientation]
    np.testing.assert_array_equal(read(PICTURE, kind, tmp_path / "x", exif=exif), upright(PIXELS))


def test_second_picture_of_a_jpeg_is_passed_over(tmp_path: Path) -> None:
    second = Image.new("RGB", (32, 24))
    got = read(PICTURE, "MPO", tmp_path / "x.jpg", save_all=True, append_images=[second], quality=95)
    assert got.std() > 30


def test_grey(tmp_path: Path) -> None:
    assert read(PICTURE, "PNG", tmp_path / "x.png", "L").shape == (24, 32)
    assert read(PICTURE.convert("1"), "PNG", tmp_path / "x.png").max() == 255


def test_error_survives_another_process() -> None:
    error = DataError("a: b.jpg", "row 1: 2", "expected x; y", "do; this")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.where, again.expected, again.remedy) == (
        "a: b.jpg",
        "row 1: 2",
        "expected x; y",
        "do; this",
    )
    with pytest.raises(TypeError, match="needs path"):
        DataError("no fields here")
