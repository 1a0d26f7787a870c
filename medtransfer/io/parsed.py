"""Headers as pydicom reads them: slow, for everything unusual, for nested values, and as the tag walk's oracle."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from typing import Any

from medtransfer.errors import ReadError
from medtransfer.io.header import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, PIXELS, SEQUENCES, TAGS, Header
from medtransfer.io.tagwalk import LONG, UNDEFINED

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f"}
_quiet = threading.Lock()  # warning filters belong to the whole process


def _check_deflated(path: str | os.PathLike[str]) -> None:
    """Refuse a deflated data set that grows without measure, before pydicom unpacks it."""
    with open(path, "rb") as file:
        head = file.read(2048)
        at = head.find(b"\x02\x00\x10\x00UI")
        if at < 0 or not head[at + 8 :].startswith(DEFLATED.encode()):
            return
        length = int.from_bytes(head[140:144], "little") if head[132:136] == b"\x02\x00\x00\x00" else 0
        file.seek(144 + length)
        most = max(2**28, 200 * os.fstat(file.fileno()).st_size)
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        try:
            while chunk := file.read(1 << 14):
                while chunk:
                    total += len(unpacker.decompress(chunk, 1 << 22))
                    chunk = unpacker.unconsumed_tail
                    if total > most:
                        got = f"more than {most:,} bytes"
                        raise ReadError("the deflated data set is far too large", where=os.path.basename(path), got=got)
        except zlib.error:
            return  # pydicom refuses it


def dataset(path: str | os.PathLike[str], *, pixels: bool) -> Any:
    """The pydicom dataset of a file, its oddities tolerated.

    Raises
    ------
    ReadError
        Where pydicom cannot make a data set of it.
    """
    import pydicom
    from pydicom.misc import is_dicom

    name = os.path.basename(path)
    _check_deflated(path)
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes values, which may identify a patient
            found = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        plausible = bool(len(found)) and (is_dicom(os.fspath(path)) or len(found.group_dataset(8)) > 0)
    except Exception as error:  # pydicom fails in many ways on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ReadError("the DICOM header is damaged", where=name, got=type(error).__name__) from None
    if not plausible:
        raise ReadError("this is not a DICOM file", where=name, got="no DICOM elements")
    return found


def by_pydicom(path: str | os.PathLike[str]) -> Header:
    """The header as pydicom reads it: slow, for everything unusual, and the walk's oracle in the tests."""
    path, name = os.fspath(path), os.path.basename(path)
    about = os.stat(path)
    found = dataset(path, pixels=False)
    syntax = str(getattr(found, "file_meta", {}).get("TransferSyntaxUID", "") or "")
    little = bool(getattr(found, "original_encoding", (False, True))[1])
    if not syntax:
        implicit = bool(getattr(found, "original_encoding", (True, True))[0])
        syntax = (IMPLICIT if implicit else EXPLICIT) if little else BIG_ENDIAN
    raw: dict[int, bytes] = {}
    for tag in TAGS.values():
        if tag in found:
            try:
                raw[tag] = b"SQ" if tag in SEQUENCES else _value(found, tag, little)
            except Exception:  # damaged values fail in many ways inside pydicom
                got = f"tag {tag >> 16:04X},{tag & 0xFFFF:04X}"
                raise ReadError("a DICOM element is damaged", where=name, got=got) from None
    pixel_tag, offset, length = _find_pixels(path, syntax, found)
    return Header(path, syntax, raw, pixel_tag, offset, length, about.st_size, about.st_mtime_ns, walked=False)


def _value(found: Any, tag: int, little: bool) -> bytes:
    element = found.get_item(tag)
    value, vr = element.value, element.VR
    if isinstance(value, bytes):
        if not little and vr in _BINARY:
            width = struct.calcsize(_BINARY[vr])
            return b"".join(value[i : i + width][::-1] for i in range(0, len(value), width))
        return value
    if value is None:
        return b""
    if vr in _BINARY:
        parts = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
        return struct.pack(f"<{len(parts)}{_BINARY[vr]}", *parts)
    many = not isinstance(value, str) and hasattr(value, "__iter__")
    return "\\".join(str(v) for v in (value if many else [value])).encode("latin-1", "replace")


def _find_pixels(path: str, syntax: str, found: Any) -> tuple[int, int, int]:
    """Pixel element and where it stands; the offset is -1 where only pydicom can take it out."""
    import pydicom

    if syntax in (DEFLATED, BIG_ENDIAN):
        whole = dataset(path, pixels=True)
        for tag in PIXELS:
            if tag in whole:
                try:
                    return tag, -1, len(whole.get_item(tag).value or b"")
                except Exception:  # a damaged value representation fails in many ways inside pydicom
                    got = f"tag {tag >> 16:04X},{tag & 0xFFFF:04X}"
                    raise ReadError("the pixel element is damaged", where=os.path.basename(path), got=got) from None
        return 0, -1, 0
    with open(path, "rb") as stream:
        try:
            pydicom.dcmread(stream, force=True, stop_before_pixels=True)
            at = stream.tell()
            stream.seek(at)
            head = stream.read(12)
        except Exception:  # the header was read before: only the place of the pixels stays unknown
            return 0, -1, 0
    if len(head) < 8:
        return 0, -1, 0
    tag = int.from_bytes(head[0:2], "little") << 16 | int.from_bytes(head[2:4], "little")
    if tag not in PIXELS:
        return 0, -1, 0
    if head[4:6] in LONG:
        length, at = int.from_bytes(head[8:12], "little"), at + 12
    else:
        length, at = int.from_bytes(head[4:8], "little"), at + 8
    return tag, at, -1 if length == UNDEFINED else length
