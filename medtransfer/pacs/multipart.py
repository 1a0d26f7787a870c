"""The one part of a multipart answer, piece by piece, so that an instance of gigabytes never stands in memory.

dicomweb-client holds each part whole and hands it to pydicom, which refuses files that this package reads; here the
bytes go to the disk as the archive sent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message

from medtransfer.pacs.pace import Damaged

_LONGEST_HEAD = 1 << 16


def boundary_of(content_type: str) -> bytes | None:
    """The boundary in a Content-Type, None where it is not multipart.

    Examples
    --------
    >>> boundary_of('multipart/related; type="application/dicom"; boundary="a b"')
    b'a b'
    >>> boundary_of("application/dicom")
    """
    message = Message()
    message["Content-Type"] = content_type
    found = message.get_boundary() if message.get_content_maintype() == "multipart" else None
    return found.encode() if found else None


def only_part(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Content of the only part of a multipart body (RFC 2046, section 5.1).

    Raises
    ------
    Damaged
        Where the body ends before its closing delimiter, or has no part or several.

    Examples
    --------
    >>> body = [b"--x\\r\\nContent-Type: application/dicom\\r\\n\\r\\nDI", b"CM\\r\\n-", b"-x--\\r\\n"]
    >>> b"".join(only_part(body, b"x"))
    b'DICM'
    """
    delimiter = b"\r\n--" + boundary
    pieces = iter(chunks)
    held = b"\r\n"  # the first delimiter may stand at the very start
    while (head := held.find(delimiter)) < 0 or (start := held.find(b"\r\n\r\n", head + len(delimiter))) < 0:
        piece = next(pieces, None)
        if piece is None or len(held) > _LONGEST_HEAD:
            raise Damaged("the answer has no part that can be read")
        held += piece
    held = held[start + 4 :]
    while (end := held.find(delimiter)) < 0:
        keep = len(delimiter) - 1
        if len(held) > keep:
            yield held[:-keep]
            held = held[-keep:]
        piece = next(pieces, None)
        if piece is None:
            raise Damaged("truncated: the answer ends before its closing delimiter")
        held += piece
    yield held[:end]
    held = held[end + len(delimiter) :]
    while len(held) < 2:
        piece = next(pieces, None)
        if piece is None:
            raise Damaged("truncated: the answer ends before its closing delimiter")
        held += piece
    if not held.startswith(b"--"):
        raise Damaged("the answer holds several instances where one was asked for")
    for _ in pieces:  # what follows means nothing, but the connection can be used again
        pass
