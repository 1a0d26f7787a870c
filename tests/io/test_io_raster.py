"""Rasters: the values that were written come back, with all their bits, or the file is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from medtransfer.errors import MedTransferWarning, ReadError
from medtransfer.io import read
from medtransfer.io.scan import scan

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), dtype=np.uint16)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "rgb"])
def test_eight_bits(tmp_path, ending, array):
    PIL.Image.fromarray(array).save(tmp_path / f"a.{ending}")
    image = read(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(image.array, array)
    assert image.rgb == (array.ndim == 3)
    assert image.geometry.affine is None
    assert image.value_range == (0, 255)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits(tmp_path, ending):
    PIL.Image.fromarray(DEEP).save(tmp_path / f"a.{ending}")
    image = read(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(image.array, DEEP)
    assert image.value_range == (0, 65535)


def test_jpeg_is_near(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    PIL.Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path / "a.jpg").array.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, orientation):
    """Against Pillow's own exif_transpose."""
    import PIL.ImageOps

    picture = PIL.Image.fromarray(np.kron(GREY[:3, :5], np.ones((8, 8), np.uint8)))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif)
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "a.jpg")))
    np.testing.assert_array_equal(read(tmp_path / "a.jpg").array, expected)
    assert scan(tmp_path, progress=False)[0].shape == expected.shape


def test_palette_and_bilevel(tmp_path):
    picture = PIL.Image.fromarray(GREY % 4, mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    picture.save(tmp_path / "p.png")
    table = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(read(tmp_path / "p.png").array, table[GREY % 4])
    PIL.Image.fromarray(GREY > 128).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png").array, GREY > 128)


def test_transparency_is_left_out_with_a_warning(tmp_path):
    PIL.Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "a.png")
    with pytest.warns(MedTransferWarning, match="transparency"):
        np.testing.assert_array_equal(read(tmp_path / "a.png").array, COLOUR)


def test_pages_are_frames(tmp_path):
    pages = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(tmp_path / "a.tif").array, np.stack([GREY, 255 - GREY]))


def deep_png(array: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG whose rows use the five filters in turn (PNG specification, section 9)."""
    height, width, channels = array.shape
    raw = array.astype(">u2").tobytes()
    row, size = width * channels * 2, channels * 2
    out, above = b"", bytes(row)
    for y in range(height):
        line, kind = raw[y * row : (y + 1) * row], y % 5
        out += bytes([kind])
        for i, value in enumerate(line):
            left = line[i - size] if i >= size else 0
            up, corner = above[i], above[i - size] if i >= size else 0
            near = min((left, up, corner), key=lambda v, p=left + up - corner: abs(p - v))
            out += bytes([(value - (0, left, up, (left + up) // 2, near)[kind]) % 256])
        above = line

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    packed = zlib.compress(out)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", packed[:50]), chunk(b"IDAT", packed[50:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_png_keeps_its_bits(tmp_path, colour, channels):
    array = RNG.integers(0, 65536, (11, 7, channels), dtype=np.uint16)
    if colour != 2:
        array[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(deep_png(array, colour))
    expected = array[..., 0] if colour == 4 else array[..., :3]
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, expected)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_truncated_files_are_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    PIL.Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReadError):
        read(path)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ReadError, match="not an image"):
        read(tmp_path / "a.png")
