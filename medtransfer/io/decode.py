"""Decoders: which one a transfer syntax needs, and stored values from it.

Of pydicom's plugins those are taken that survive damaged files in this process; GDCM runs in one of its own.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MedTransferError, MissingPackage, ReadError
from medtransfer.io.header import NATIVE, Header
from medtransfer.io.parsed import dataset

if TYPE_CHECKING:
    from medtransfer.io.pixels import Format

Values = NDArray[Any]
_PACKAGES = {
    "1.2.840.10008.1.2.4.51": "python-gdcm",
    "1.2.840.10008.1.2.4.53": "python-gdcm",
    "1.2.840.10008.1.2.4.55": "python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg-openjpeg",
}


def by_pydicom(found: Any, header: Header, form: Format, plugin: str) -> Values:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import convert_color_space
    from pydicom.uid import UID

    try:
        decoder = get_decoder(UID(header.syntax))
        if getattr(found, "file_meta", None) is None or "TransferSyntaxUID" not in found.file_meta:
            found.file_meta = _meta(header.syntax)
        array, about = decoder.as_array(found, raw=False, decoding_plugin=plugin)
        model = str(about.get("photometric_interpretation", form.photometric))
        if form.samples == 3 and model.startswith("YBR"):
            array = convert_color_space(array, model, "RGB", per_frame=form.frames > 1)
        native: Values = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return native
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged bytes
        raise ReadError(
            "the pixels cannot be decoded",
            where=header.name,
            got=f"{type(error).__name__}, {_syntax_name(header)}",
            fix="copy the file again, or export it uncompressed",
        ) from None


def _meta(syntax: str) -> Any:
    """File meta information for files that have none."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    return meta


def _syntax_name(header: Header) -> str:
    from pydicom.uid import UID

    return f"transfer syntax {UID(header.syntax).name}"


def no_decoder(header: Header) -> MissingPackage | ReadError:
    package = _PACKAGES.get(header.syntax)
    if package:
        return MissingPackage(
            f"decoding needs the package '{package}'",
            where=header.name,
            got=_syntax_name(header),
            fix=f"pip install 'medtransfer[codecs]' (or {package})",
        )
    return ReadError(
        "there is no decoder for this transfer syntax",
        where=header.name,
        got=_syntax_name(header),
        fix="export the file uncompressed (Explicit VR Little Endian)",
    )


def by_gdcm(header: Header) -> Values:
    from medtransfer.io import gdcm_process

    if not _installed("gdcm"):
        raise no_decoder(header)
    try:
        return gdcm_process.decode(header.path)
    except gdcm_process.DecodeFailed as error:
        raise ReadError(
            "the pixels cannot be decoded",
            where=header.name,
            got=f"{error}, {_syntax_name(header)}",
            fix="copy the file again, or export it uncompressed",
        ) from None


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@cache
def plugin_for(syntax: str, bits: int) -> str | None:
    """Decoder of a transfer syntax: one of pydicom's plugins, 'gdcm' (run apart), '' (none needed), None (missing)."""
    if syntax in NATIVE:
        return ""
    if syntax == "1.2.840.10008.1.2.5":
        return "pydicom"
    if syntax == "1.2.840.10008.1.2.4.50" or (syntax == "1.2.840.10008.1.2.4.51" and bits <= 8):
        return "pillow"
    number = syntax.removeprefix("1.2.840.10008.1.2.4.")
    if number in ("80", "81") and _installed("jpeg_ls"):
        return "pyjpegls"
    if number in ("90", "91", "201", "202", "203") and _installed("openjpeg") and _installed("pylibjpeg"):
        return "pylibjpeg"
    if number in ("51", "53", "55", "57", "70", "80", "81", "90", "91") and _installed("gdcm"):
        return "gdcm"
    return None


def can_decode(header: Header) -> MedTransferError | None:
    """The error that reading would raise for want of a decoder, None if there is one."""
    return no_decoder(header) if plugin_for(header.syntax, header.integer("BitsStored", 8)) is None else None


def packed_12(header: Header, form: Format) -> Values:
    """Two 12-bit samples in three bytes (BitsAllocated 12), little-endian."""
    if header.syntax not in NATIVE or form.samples != 1:
        raise ReadError("12 bits allocated are read uncompressed and grey only", where=header.name)
    count = form.frames * form.rows * form.columns
    if header.offset >= 0:
        data = np.fromfile(header.path, np.uint8, (count * 12 + 7) // 8, offset=header.offset)
    else:
        data = np.frombuffer(dataset(header.path, pixels=True).PixelData, np.uint8)[: (count * 12 + 7) // 8]
    data = np.concatenate([data, np.zeros(-len(data) % 3, np.uint8)]).reshape(-1, 3).astype(np.uint16)
    pairs = np.stack([data[:, 0] | (data[:, 1] & 15) << 8, data[:, 1] >> 4 | data[:, 2] << 4], axis=1)
    return pairs.reshape(-1)[:count].reshape(form.frames, form.rows, form.columns).view(form.dtype)


def palette(array: Values, found: Any, header: Header) -> Values:
    """Palette indices to 8-bit RGB."""
    from pydicom.pixels.processing import apply_color_lut

    try:
        colours = apply_color_lut(array.reshape(-1, array.shape[-1]), found)[..., :3]
    except Exception as error:  # damaged palettes fail in many ways inside pydicom
        got = type(error).__name__
        raise ReadError("the colour palette is missing or damaged", where=header.name, got=got) from None
    if colours.dtype.itemsize > 1:
        colours = colours >> 8 if colours.max() > 255 else colours
    return colours.astype(np.uint8).reshape(*array.shape, 3)
