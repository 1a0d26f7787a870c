"""Headers of DICOM files without a parser's cost: a small walk over the first kibibytes.

The walk reads explicit and implicit little-endian headers, which is nearly every file there is (compressed files have
an explicit little-endian header too). Whatever is unusual - big-endian, deflated, no preamble, private transfer
syntaxes, odd value representations, very long headers - goes to pydicom, and gives the same :class:`Header`.
"""

from __future__ import annotations

import os
import struct

from medtransfer.io.header import EXPLICIT, IMPLICIT, PIXELS, SEQUENCES, TAGS, Header

_SYNTAX = 0x00020010
LONG = frozenset(b"OB OW OF OD OL OV SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED = 0xFFFFFFFF
_IMPLICIT_HEAD = struct.Struct("<HHI").unpack_from
_EXPLICIT_HEAD = struct.Struct("<HH2sH").unpack_from
_TURNED_EXPLICIT = struct.Struct("<IHH").unpack_from  # tag with its halves exchanged, VR, length: whole numbers only
_TURNED_IMPLICIT = struct.Struct("<II").unpack_from
_TURNED = {(tag & 0xFFFF) << 16 | tag >> 16: tag for tag in TAGS.values()}
_SHORT_NUMBERS = frozenset(int.from_bytes(vr, "little") for vr in _SHORT)
_LONG_NUMBERS = frozenset(int.from_bytes(vr, "little") for vr in LONG)
_UN = int.from_bytes(b"UN", "little")
_LENGTH = struct.Struct("<I").unpack_from


class _Unusual(Exception):
    """The walk leaves this file to pydicom."""


class _NeedMore(Exception):
    """The header goes on beyond the bytes at hand."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """Header of one DICOM file.

    Raises
    ------
    ReadError
        Where the file is not DICOM or damaged before its pixels. OSError passes through.
    """
    path = os.fspath(path)
    with open(path, "rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        size = about.st_size
        data = b""
        for budget in (8192, 65536, 1 << 20):
            data += file.read(budget - len(data)) or b""
            try:
                syntax, raw, pixel_tag, offset, length = _walk(data)
            except _NeedMore:
                if len(data) >= size:
                    break
                continue
            except (_Unusual, struct.error, RecursionError):
                break
            return Header(path, syntax, raw, pixel_tag, offset, length, size, about.st_mtime_ns)
    from medtransfer.io.parsed import by_pydicom

    return by_pydicom(path)


def _walk(data: bytes) -> tuple[str, dict[int, bytes], int, int, int]:
    if data[128:132] != b"DICM":
        raise _Unusual
    end, at, syntax = len(data), 132, ""
    while at + 12 <= end and data[at : at + 2] == b"\x02\x00":  # the file meta group is always explicit
        _, element, vr, length = _EXPLICIT_HEAD(data, at)
        at += 8
        if vr in LONG:
            length = _LENGTH(data, at)[0]
            at += 4
        if element == 0x10:
            syntax = data[at : at + length].decode("latin-1").strip("\0 ")
        at += length
    if at + 12 > end:
        raise _NeedMore
    explicit = syntax != IMPLICIT
    compressed = syntax.startswith("1.2.840.10008.1.2.4.") or syntax == "1.2.840.10008.1.2.5"
    if not (syntax in (IMPLICIT, EXPLICIT) or compressed) or (data[at + 4 : at + 6] in _SHORT) != explicit:
        raise _Unusual
    raw: dict[int, bytes] = {}
    while at + 8 <= end:
        if explicit:
            turned, vr, length = _TURNED_EXPLICIT(data, at)
            at += 8
            if vr not in _SHORT_NUMBERS:  # a 32-bit length follows
                if vr not in _LONG_NUMBERS:
                    raise _Unusual
                if at + 4 > end:
                    raise _NeedMore
                length = _LENGTH(data, at)[0]
                at += 4
                if vr == _UN and length == UNDEFINED:
                    raise _Unusual
        else:
            turned, length = _TURNED_IMPLICIT(data, at)
            at += 8
        tag = 0
        if turned in _TURNED:
            tag = _TURNED[turned]
            raw[tag] = b"SQ" if tag in SEQUENCES else data[at : at + length]
        elif not 8 <= turned & 0xFFFF < 0x7FE0:
            tag = (turned & 0xFFFF) << 16 | turned >> 16
            if tag in PIXELS:
                return syntax, raw, tag, at, -1 if length == UNDEFINED else length
            if tag >> 16 != 0x7FE0:  # pixels, if there are any, come before; groups below 8 are no data set
                raise _Unusual
        if length == UNDEFINED:
            if raw.get(tag, b"SQ") != b"SQ":
                raise _Unusual
            at = _skip(data, at, explicit)
        else:
            at += length
    raise _NeedMore  # also a file that ends without pixels: pydicom decides what it is


def _skip(data: bytes, at: int, explicit: bool, depth: int = 0) -> int:
    """End of a sequence of undefined length that starts at ``at``."""
    if depth > 12:
        raise _Unusual
    while True:
        if at + 8 > len(data):
            raise _NeedMore
        group, element, length = _IMPLICIT_HEAD(data, at)
        at += 8
        if group != 0xFFFE:
            raise _Unusual
        if element == 0xE0DD:
            return at
        if length != UNDEFINED:
            at += length
            continue
        while True:
            if at + 12 > len(data):
                raise _NeedMore
            if explicit:
                group, element, vr, length = _EXPLICIT_HEAD(data, at)
                at += 8
                if group == 0xFFFE:
                    break
                if vr in LONG:
                    length = _LENGTH(data, at)[0]
                    at += 4
                elif vr not in _SHORT:
                    raise _Unusual
                if vr == b"UN" and length == UNDEFINED:
                    raise _Unusual
            else:
                group, element, length = _IMPLICIT_HEAD(data, at)
                at += 8
                if group == 0xFFFE:
                    break
            at = _skip(data, at, explicit, depth + 1) if length == UNDEFINED else at + length
