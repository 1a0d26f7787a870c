"""PNG, JPEG, TIFF and BMP as plain images, 8 and 16 bits, without the silent losses of common readers."""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MedTransferWarning, ReadError
from medtransfer.image import Geometry, Image

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
Values = NDArray[Any]
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _SAMPLES = 258, 277


def is_raster(path: str | Path) -> bool:
    """Whether the name is that of a raster image."""
    return str(path).lower().endswith(ENDINGS)


def raster_kind(path: Path) -> tuple[str, tuple[int, ...]]:
    """Format and shape of a raster, its pixels not decoded.

    Raises
    ------
    ReadError
        Where it is damaged, or too large for its file.
    """
    with _opened(path) as picture:
        frames = _page_count(picture, path)
        sides = (picture.height, picture.width)[:: -1 if _turned(picture) > 4 else 1]
        shape = sides + ((3,) if _is_colour(picture) else ())
        return str(picture.format), ((frames, *shape) if frames > 1 else shape)


def read_raster(path: Path) -> Image:
    """Read a raster image.

    Returns
    -------
    Image
        ``[rows, cols]`` or ``[rows, cols, 3]`` (``[frames, ...]`` for a TIFF of several pages), uint8, uint16,
        int32 or float32 as in the file. Palettes become RGB. An alpha channel is dropped, with a warning where it is
        not opaque.

    Raises
    ------
    ReadError
        Where it is damaged, of several sizes, or would lose bits.
    """
    path = Path(path)
    with _opened(path) as picture:
        if picture.format == "PNG" and (deep := _deep_png(path)) is not None:
            return _image(deep, path, 65535.0)
        bilevel = picture.mode == "1"
        if picture.format == "TIFF" and _is_deep_colour(picture):
            raise ReadError(
                "colour TIFF with more than 8 bits would lose its lower bits",
                where=path.name,
                got=f"{picture.mode}",
                fix="save it as 16-bit PNG",
            )
        frames = _page_count(picture, path)
        pages = []
        try:
            for number in range(frames):
                if frames > 1:
                    picture.seek(number)
                page = _page(picture, path)
                pages.append(_upright(page, _turned(picture)))
        except ReadError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways on damaged bytes
            got = f"{type(error).__name__}: {str(error)[:60]}"
            fix = "copy the file again"
            raise ReadError("truncated or damaged image", where=path.name, got=got, fix=fix) from None
    if len({p.shape for p in pages}) > 1:
        raise ReadError("the pages differ in size", where=path.name, got=sorted({p.shape for p in pages}))
    array = np.stack(pages) if len(pages) > 1 else pages[0]
    top = 1.0 if bilevel else {"u1": 255.0, "u2": 65535.0}.get(array.dtype.str[1:])
    return _image(array, path, top)


def _opened(path: Path) -> Any:
    import PIL.Image

    for name in ("PIL.PngImagePlugin", "PIL.TiffImagePlugin"):  # at DEBUG they log text that may name a patient
        if not (logger := logging.getLogger(name)).level:
            logger.setLevel(logging.INFO)
    if path.stat().st_size == 0:
        raise ReadError("the file is empty", where=path.name, got="0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(path)
    except PIL.Image.DecompressionBombError as error:
        raise ReadError("the image is too large", where=path.name, got=str(error)[:80]) from None
    except OSError as error:
        if isinstance(error, PIL.UnidentifiedImageError):
            raise ReadError("this is not an image that can be read", where=path.name) from None
        raise
    except Exception as error:  # Pillow fails in many ways on damaged headers
        raise ReadError("the image header is damaged", where=path.name, got=type(error).__name__) from None
    if picture.format not in ("PNG", "JPEG", "TIFF", "BMP", "MPO"):
        picture.close()
        raise ReadError("this image format is not supported", where=path.name, got=picture.format)
    size = picture.width * picture.height * len(picture.getbands())
    if size > _BOMB_BYTES and size > _BOMB_RATIO * path.stat().st_size:
        picture.close()
        raise ReadError("the image would be far too large for its file", where=path.name, got=f"{size:,} bytes")
    return picture


def _page_count(picture: Any, path: Path) -> int:
    try:
        return int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1
    except Exception as error:  # Pillow fails in many ways on damaged directories
        raise ReadError("the image header is damaged", where=path.name, got=type(error).__name__) from None


def _turned(picture: Any) -> int:
    """EXIF orientation of a photograph, 1 to 8; 1 is upright."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1)) if picture.format in ("JPEG", "MPO") else 1
    except Exception:  # damaged EXIF data fail in many ways, and then say nothing
        return 1


def _upright(page: Values, turned: int) -> Values:
    """The picture as a viewer shows it (EXIF 2.3, tag Orientation)."""
    if turned in (5, 6, 7, 8):
        page = page.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        page = page[::-1]
    return page[:, ::-1] if turned in (2, 3, 6, 7) else page


def _is_colour(picture: Any) -> bool:
    return picture.mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")


def _is_deep_colour(picture: Any) -> bool:
    bits = picture.tag_v2.get(_BITS_PER_SAMPLE, (8,))
    return bool(picture.tag_v2.get(_SAMPLES, 1) > 1 and max(bits if isinstance(bits, tuple) else (bits,)) > 8)


def _page(picture: Any, path: Path) -> Values:
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture.convert("L")) // np.uint8(255)
    if mode in ("RGBA", "LA", "PA") or (mode == "P" and "transparency" in picture.info):
        picture = picture.convert("RGBA" if mode != "LA" else "LA")
        if np.asarray(picture)[..., -1].min() < 255:
            warnings.warn(f"{path.name}: the transparency was left out", MedTransferWarning, stacklevel=4)
        return np.asarray(picture)[..., :3] if picture.mode == "RGBA" else np.asarray(picture)[..., 0]
    if mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    if array.dtype.kind not in "uif":
        raise ReadError("this kind of pixel is not supported", where=path.name, got=mode)
    if mode.startswith("I;16"):
        return array.astype(np.uint16)
    if mode == "I" and picture.format == "PNG":  # 16-bit grey PNG in older Pillow
        return array.astype(np.uint16)
    return array


def _image(array: Values, path: Path, top: float | None) -> Image:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ReadError("some pixels are NaN or infinite", where=path.name)
    rgb = array.ndim > 2 and array.shape[-1] == 3
    return Image(array, Geometry(), rgb=rgb, value_range=None if top is None else (0.0, top))


def _deep_png(path: Path) -> Values | None:
    """A 16-bit PNG with more than one channel, which Pillow would cut to 8 bits; None for any other."""
    data = path.read_bytes()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour, interlaced = data[24], data[25], data[28]
    channels = {2: 3, 4: 2, 6: 4}.get(colour)
    if depth != 16 or channels is None:
        return None
    if interlaced:
        fix = "save it without interlacing"
        raise ReadError("interlaced 16-bit colour PNG is not supported", where=path.name, fix=fix)
    packed, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        at += length + 12
    row = width * channels * 2
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(b"".join(packed), height * (row + 1) + 1)
    except zlib.error:
        raise ReadError("truncated or damaged image", where=path.name, got="a broken PNG stream") from None
    if len(raw) < height * (row + 1):
        got = f"{len(raw):,} of {height * (row + 1):,} bytes"
        raise ReadError("truncated or damaged image", where=path.name, got=got)
    lines = np.frombuffer(raw, np.uint8, height * (row + 1)).reshape(height, row + 1)
    if lines[:, 0].max() > 4:
        raise ReadError("truncated or damaged image", where=path.name, got="an unknown PNG filter")
    plain = _unfilter(lines[:, 0], lines[:, 1:].reshape(height, width, channels * 2))
    array = plain.reshape(height, width, channels, 2).astype(np.uint16)
    values = array[..., 0] << 8 | array[..., 1]
    if channels in (2, 4) and values[..., -1].min() < 65535:
        warnings.warn(f"{path.name}: the transparency was left out", MedTransferWarning, stacklevel=4)
    return values[..., 0] if channels == 2 else values[..., :3]


def _unfilter(filters: Values, lines: Values) -> Values:
    """Undo PNG's line filters along diagonals, so that left, upper and upper-left pixels are always done."""
    height, width, size = lines.shape
    done = np.zeros((height + 1, width + 1, size), np.int16)
    rows = np.arange(height)
    for diagonal in range(height + width - 1):
        r = rows[max(0, diagonal - width + 1) : min(height, diagonal + 1)]
        c = diagonal - r
        left, up, corner = done[r + 1, c], done[r, c + 1], done[r, c]
        estimate = left + up - corner
        by_left, by_up, by_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
        paeth = np.where((by_left <= by_up) & (by_left <= by_corner), left, np.where(by_up <= by_corner, up, corner))
        kind = filters[r][:, None]
        guess = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) // 2, paeth], 0)
        done[r + 1, c + 1] = (lines[r, c] + guess) & 255
    return done[1:, 1:].astype(np.uint8)
