"""From a DICOM file to stored values: taken directly from the file where nothing is compressed, decoded elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ReadError
from medtransfer.io.decode import Values, by_gdcm, by_pydicom, no_decoder, packed_12, palette, plugin_for
from medtransfer.io.frames import frame_count
from medtransfer.io.header import EXPLICIT, IMPLICIT, NATIVE, PIXELS, TAGS, Header
from medtransfer.io.parsed import dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
_DESCRIPTION = [
    *(TAGS[k] for k in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation")),
    *(TAGS[k] for k in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")),
]


@dataclass(frozen=True, slots=True)
class Format:
    """How the numbers of a file are laid down, checked against the bytes that are there.

    Parameters
    ----------
    frames, rows, columns, samples : int
    allocated, stored, high : int
        Bits a sample takes, bits of it that count, and the highest of these.
    signed : bool
    photometric : str
    dtype : numpy dtype
        Of the stored values.
    """

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    dtype: np.dtype[Any]

    @property
    def rgb(self) -> bool:
        """Whether the picture is colour once it is decoded."""
        return self.photometric not in GREY

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest stored value the format can hold."""
        if self.dtype.kind == "f":
            limits = np.finfo(self.dtype)
            return float(limits.min), float(limits.max)
        if self.signed:
            return -(2.0 ** (self.stored - 1)), 2.0 ** (self.stored - 1) - 1
        return 0.0, 2.0**self.stored - 1


_seen: dict[tuple[int | bytes | None, ...], Format] = {}  # a series describes its pixels a thousand times alike


def pixel_format(header: Header) -> Format:
    """Read the pixel description and compare it with the bytes in the file, before anything is allocated.

    Raises
    ------
    ReadError
        Where there are no pixels, a tag is missing or impossible, or bytes are missing.
    """
    if isinstance(header.form, Format):
        return header.form
    if not header.pixel_tag:
        raise ReadError("no pixel data: the file has a header only", where=header.name)
    key = (header.pixel_tag, *map(header.raw.get, _DESCRIPTION))
    form = _seen.get(key)
    if form is None:
        form = _parse(header)
        if len(_seen) < 10_000:
            _seen[key] = form
    _check_bytes(header, form)
    header.form = form
    return form


def _parse(header: Header) -> Format:
    rows, columns = header.integer("Rows"), header.integer("Columns")
    samples, frames = header.integer("SamplesPerPixel", 1), frame_count(header)
    photometric = header.text("PhotometricInterpretation").upper() or ("MONOCHROME2" if samples == 1 else "RGB")
    if rows < 1 or columns < 1:
        raise ReadError("Rows and Columns must be positive", where=header.name, got=f"{rows} x {columns}")
    kind = PIXELS[header.pixel_tag]
    if kind == "PixelData":
        allocated = header.integer("BitsAllocated")
        stored = header.integer("BitsStored", allocated)
        high = header.integer("HighBit", stored - 1)
        signed = header.integer("PixelRepresentation", 0) == 1
        sizes = {1: 1, 8: 1, 12: 2, 16: 2, 32: 4, 64: 8}
        if allocated not in sizes or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
            got = f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}"
            raise ReadError("the description of the pixel bits is impossible", where=header.name, got=got)
        dtype = np.dtype(f"{'i' if signed and allocated > 1 else 'u'}{sizes[allocated]}")
    else:
        allocated = stored = 32 if kind == "FloatPixelData" else 64
        high, signed, dtype = stored - 1, True, np.dtype(f"f{allocated // 8}")
    grey = photometric in GREY or photometric == "PALETTE COLOR"
    if samples != (1 if grey else 3) or not (grey or photometric in _COLOUR):
        got = f"PhotometricInterpretation {photometric!r} with {samples} sample(s) a pixel"
        raise ReadError("this colour model is not supported", where=header.name, got=got)
    return Format(frames, rows, columns, samples, allocated, stored, high, signed, photometric, dtype)


def _check_bytes(header: Header, form: Format) -> None:
    there = max(header.size - header.offset, 0) if header.offset >= 0 else max(header.length, 0)
    bits = form.frames * form.rows * form.columns * form.samples * form.allocated
    wanted = (bits + 7) // 8
    if header.syntax not in NATIVE:  # compressed: judge the size it will grow to
        if wanted > _BOMB_BYTES and wanted > _BOMB_RATIO * there:
            raise ReadError(
                "the decoded image would be far too large for its file",
                where=header.name,
                got=f"{wanted:,} bytes from {there:,}",
                fix="check Rows, Columns and NumberOfFrames",
            )
        if header.offset >= 0 and header.length < 0 and not _is_complete(header):
            raise ReadError(
                "truncated: the compressed pixels have no end",
                where=header.name,
                got=f"{there:,} bytes",
                fix="copy the file again",
            )
        return
    if form.photometric == "YBR_FULL_422" and header.length < wanted:
        wanted = form.frames * form.rows * (form.columns + form.columns % 2) * 2 * form.allocated // 8
    got = min(there, header.length) if header.length >= 0 else there
    if got < wanted:
        text = f"{got:,} bytes where {form.frames} x {form.rows} x {form.columns} pixels need {wanted:,}"
        what = "truncated: the file holds fewer pixel bytes than its header says"
        raise ReadError(what, where=header.name, got=text, fix="copy the file again")


def _is_complete(header: Header) -> bool:
    """Whether the fragments of compressed pixels end with their delimiter inside the file."""
    with open(header.path, "rb", buffering=0) as file:
        at = header.offset
        while at + 8 <= header.size:
            file.seek(at)
            head = file.read(8)
            if head[:4] == b"\xfe\xff\xdd\xe0":
                return True
            if head[:4] != b"\xfe\xff\x00\xe0":
                return False
            at += 8 + int.from_bytes(head[4:8], "little")
    return False


def is_direct(header: Header, form: Format) -> bool:
    """Whether the stored values can be taken from the file as they are."""
    return (
        header.syntax in (IMPLICIT, EXPLICIT)
        and header.offset >= 0
        and header.length >= 0
        and form.photometric in GREY
        and form.allocated in (8, 16, 32, 64)
    )


def read_direct(header: Header, form: Format, out: Values) -> None:
    """Read the bytes of an uncompressed file into ``out`` ``[frames, rows, columns]``, which is contiguous."""
    with open(header.path, "rb", buffering=0) as file:
        file.seek(header.offset)
        view, done = memoryview(out.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ReadError("truncated while reading", where=header.name, fix="copy the file again")
            done += count


def stored_values(header: Header, form: Format) -> Values:
    """Stored values of a file.

    Returns
    -------
    ndarray [frames, rows, columns] or [frames, rows, columns, 3]
        Without rescale or LUT; palette and YBR pictures as RGB.

    Raises
    ------
    ReadError
        Where the pixels cannot be decoded.
    MissingPackage
        Where the transfer syntax needs an optional decoder.
    """
    if is_direct(header, form):
        array = np.empty((form.frames, form.rows, form.columns), form.dtype)
        read_direct(header, form, array)
        return clean_bits(array, form)
    if form.allocated == 12:
        return clean_bits(packed_12(header, form), form)
    plugin = plugin_for(header.syntax, form.stored)
    if plugin is None:
        raise no_decoder(header)
    found = dataset(header.path, pixels=True)
    array = by_gdcm(header) if plugin == "gdcm" else by_pydicom(found, header, form, plugin)
    shape = (form.frames, form.rows, form.columns) + ((3,) if form.samples == 3 else ())
    if array.size != int(np.prod(shape)):
        raise ReadError("the decoded image has another size than its header says", where=header.name, got=array.shape)
    array = array.reshape(shape)
    if form.photometric == "PALETTE COLOR":
        return palette(array, found, header)
    return clean_bits(array, form) if form.samples == 1 else array


def clean_bits(array: Values, form: Format) -> Values:
    """Ignore bits that do not belong to the value and extend the sign, as the standard asks, in place."""
    if form.dtype.kind == "f" or form.allocated == 1 or array.dtype.itemsize * 8 == form.stored or not array.size:
        return array
    low, high = form.range
    unused = array.dtype.itemsize * 8 - 1 - form.high
    if form.high == form.stored - 1 and array.min() >= low and array.max() <= high:
        return array
    width = array.dtype.itemsize * 8
    np.left_shift(array, unused, out=array)
    np.right_shift(array, width - form.stored, out=array)
    return array


def modality_lut(header: Header) -> tuple[NDArray[np.int64], int] | None:
    """The Modality LUT as a table and the stored value of its first entry, None if there is none."""
    if not header.has("ModalityLUTSequence"):
        return None
    try:
        item = dataset(header.path, pixels=False).ModalityLUTSequence[0]
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item.LUTData
        if isinstance(data, bytes):
            data = np.frombuffer(data, "<u1" if bits <= 8 and len(data) < 2 * (count or 65536) else "<u2")
        table = np.asarray(data, dtype=np.int64)[: count or 65536]
    except (AttributeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
        raise ReadError("the Modality LUT is damaged", where=header.name, got=type(error).__name__) from None
    if len(table) < (count or 65536):
        got = f"{len(table)} of {count or 65536} entries"
        raise ReadError("the Modality LUT has fewer entries than it says", where=header.name, got=got)
    if header.integer("PixelRepresentation", 0) == 1 and first > 32767:
        first -= 65536
    return table, first


def physical(array: Values, slope: float, intercept: float, form: Format) -> Values:
    """Stored values times slope plus intercept: whole numbers stay whole, the rest is float32.

    Signed 16-bit where the format's range allows, else signed 32 or 64-bit; unsigned 8-bit stays.
    """
    if form.dtype.kind == "f":
        return array if slope == 1 and intercept == 0 else array * slope + intercept
    if slope != 1 or intercept != int(intercept):
        return (array * np.float64(slope) + intercept).astype(np.float32)
    dtype = whole_dtype(form, intercept)
    if array.dtype.itemsize == dtype.itemsize and array.dtype != dtype:
        array = array.view(dtype)  # the range was seen to fit
    elif array.dtype != dtype:
        array = array.astype(dtype)
    if intercept:
        array += dtype.type(int(intercept))
    return array


def whole_dtype(form: Format, intercept: float) -> np.dtype[Any]:
    """Smallest of uint8, int16, int32, int64 that holds every stored value plus a whole intercept."""
    low, high = form.range[0] + min(intercept, 0.0), form.range[1] + max(intercept, 0.0)
    if intercept == 0 and form.dtype == np.uint8:
        return np.dtype(np.uint8)
    for size in (2, 4):
        if -(2.0 ** (8 * size - 1)) <= low and high < 2.0 ** (8 * size - 1):
            return np.dtype(f"i{size}")
    return np.dtype(np.int64)
