"""Volumes that stay on disk: pages of the file come into memory when they are looked at, and leave it again."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medtransfer.errors import ReadError
from medtransfer.image import Geometry, Image
from medtransfer.io.findings import refuse, tell
from medtransfer.io.nifti import NiftiHeader, read_nifti, read_nifti_header
from medtransfer.io.volume import canonical

_CHUNK = 2**20  # bytes that are in memory on the way


def scratch(shape: Sequence[int], dtype: DTypeLike, *, folder: Path | None = None) -> NDArray[Any]:
    """An array of zeros in a file without a name, which goes when the array does.

    Parameters
    ----------
    folder : Path or None
        Where the file lies; None takes the system's place for temporary files (``TMPDIR``).
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(max(1, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize))
        return np.memmap(file, dtype, "r+", shape=tuple(shape))  # keeps a handle of its own


def read_mapped(path: Path, *, folder: Path | None = None) -> Image:
    """Read a NIfTI file as :func:`medtransfer.io.nifti.read_nifti` does, the voxels left on disk.

    A compressed file, and one whose values are scaled, is unpacked to a temporary file first. Colours are read whole.

    Raises
    ------
    ReadError
        As ``read_nifti``.
    """
    found = read_nifti_header(Path(path))
    if found.rgb:
        return read_nifti(path)
    refuse(found.findings)
    tell(found.findings)
    shape = found.shape + (1,) * (3 - len(found.shape))
    flat = _voxels(found, folder)
    if found.slope != 1 or found.intercept != 0:
        scaled = scratch(flat.shape, np.float32, folder=folder)
        for part in _parts(flat):
            scaled[part] = flat[part] * np.float64(found.slope) + found.intercept
        flat = scaled
    if flat.dtype.kind == "f":
        bad = sum(int((~np.isfinite(flat[part])).sum()) for part in _parts(flat))
        if bad:
            raise ReadError("some voxels are NaN or infinite", where=found.path.name, got=f"{bad:,} of {flat.size:,}",
                            fix="read(..., fill=0) replaces them")  # fmt: skip
    turned, affine = canonical(flat.reshape(shape, order="F"), found.affine)
    return Image(turned, Geometry.from_affine(affine))


def _parts(flat: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _CHUNK // 8)
    return (slice(i, i + step) for i in range(0, len(flat), step))


def _voxels(found: NiftiHeader, folder: Path | None) -> NDArray[Any]:
    count = int(np.prod(found.shape, dtype=object))
    with open(found.path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            return _unpacked(file, found, count, folder)
    return np.memmap(found.path, found.dtype, "r", offset=found.offset, shape=(count,))


def _unpacked(file: IO[bytes], found: NiftiHeader, count: int, folder: Path | None) -> NDArray[Any]:
    """The voxels of a gzip file in a temporary one."""
    wanted, skip, name = count * found.dtype.itemsize, found.offset, found.path.name
    array = scratch((wanted,), np.uint8, folder=folder)
    stream, place = zlib.decompressobj(wbits=31), -skip
    try:
        data = file.read(_CHUNK)
        while data and place < wanted:
            piece = stream.decompress(data, _CHUNK)
            low, high = max(0, -place), min(len(piece), wanted - place)
            if high > low:
                array[place + low : place + high] = np.frombuffer(piece, np.uint8)[low:high]
            place += len(piece)
            if stream.eof and place < wanted:  # one member after the other
                data, stream = stream.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=31)
                data = data or file.read(_CHUNK)
            else:
                data = stream.unconsumed_tail or file.read(_CHUNK)
        while data and not stream.eof and place <= wanted:  # the check sum stands behind the last voxel
            place += len(stream.decompress(data, 1))
            data = stream.unconsumed_tail or file.read(_CHUNK)
    except zlib.error:
        place = min(place, wanted - 1)
    if place < wanted:
        raise ReadError("truncated or damaged gzip stream", where=name, got=f"{max(0, place):,} of {wanted:,} bytes",
                        fix="copy the file again")  # fmt: skip
    return array.view(found.dtype)
