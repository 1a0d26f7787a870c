"""From headers to frames: where each 2D picture of a file lies, how its numbers scale, and when it was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ReadError
from medtransfer.io.header import TAGS, Header
from medtransfer.io.parsed import dataset

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One 2D picture in space and time.

    Parameters
    ----------
    header : Header
        The file it stands in.
    index : int
        Number of the frame in the file (of the tile, in a mosaic).
    position : ndarray (3,)
        Centre of its first pixel, DICOM's LPS millimetres.
    orientation : ndarray (6,)
        Direction cosines along a row and along a column.
    spacing : tuple of float
        Millimetres between rows and between columns; None where the file does not say.
    slope, intercept : float
        Linear part of the Modality LUT.
    type : str
        Image Type or Frame Type: tells magnitude from phase, water from fat.
    order : tuple
        What :attr:`when` is in an enhanced file; empty where the header says it.
    """

    header: Header
    index: int
    position: Vector
    orientation: Vector
    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    type: str = ""
    order: tuple[Any, ...] = ()

    @property
    def when(self) -> tuple[Any, ...]:
        """Sorts frames that share a place: time, echo, b-value, instance number."""
        return self.order or _when(self.header)


def is_enhanced(header: Header) -> bool:
    """Whether the geometry stands in functional groups."""
    return header.has("PerFrameFunctionalGroupsSequence")


def is_mosaic(header: Header) -> bool:
    """Whether a slice holds a whole volume as tiles (Siemens)."""
    return b"MOSAIC" in header.raw.get(0x00080008, b"").upper()


def is_grid(header: Header) -> bool:
    """Whether a slice holds a whole volume as a grid of another maker (UIH), which cannot be taken apart."""
    return b"VFRAME" in header.raw.get(0x00080008, b"").upper()


def frame_count(header: Header) -> int:
    """Number of frames, 1 if the file does not say."""
    count = int(header.number("NumberOfFrames", 1))
    if count < 1:
        raise ReadError("NumberOfFrames must be 1 or more", where=header.name, got=count)
    return count


def rescale(header: Header) -> tuple[float, float]:
    """Rescale Slope and Intercept, 1 and 0 if missing."""
    slope = header.number("RescaleSlope", 1.0)
    if slope == 0:
        raise ReadError("RescaleSlope is 0: every value would be the same", where=header.name)
    return slope, header.number("RescaleIntercept", 0.0)


def checked_spacing(values: Sequence[float], keyword: str, header: Header) -> tuple[float, float]:
    """Two positive lengths that may be millimetres."""
    if len(values) != 2 or not 1e-5 < min(values) <= max(values) < 1e4:
        raise ReadError(f"{keyword} must be positive and in millimetres", where=header.name, got=tuple(values))
    return float(values[0]), float(values[1])


def in_plane_spacing(header: Header) -> tuple[float, float] | None:
    """Millimetres between rows and between columns: Pixel Spacing, else that at the imager's plate."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = header.numbers(keyword, 2)
        if values:
            return checked_spacing(values, keyword, header)
    return None


@lru_cache(maxsize=256)
def _directions(values: tuple[float, ...]) -> Vector | None:
    """Two unit vectors, None if they are not perpendicular or far from unit length; one array for a whole series."""
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 0.02 or abs(lengths[1] - 1) > 0.02 or abs(row @ column) > 0.02:
        return None
    return np.concatenate([row / lengths[0], column / lengths[1]])


def orientation_of(values: tuple[float, ...], header: Header) -> Vector:
    """Direction cosines as unit vectors.

    Raises
    ------
    ReadError
        Where they are not two perpendicular unit vectors.
    """
    directions = _directions(values)
    if directions is None:
        raise ReadError(
            "ImageOrientationPatient is not two perpendicular unit vectors",
            where=header.name,
            got=values,
            fix="correct the tag, or leave the file out",
        )
    return directions


def is_spatial(header: Header) -> bool:
    """Whether a single-frame file says where it lies."""
    return header.has("ImagePositionPatient") and header.has("ImageOrientationPatient")


def classic_frame(header: Header) -> Frame:
    """The frame of a single-frame file with position and orientation.

    Raises
    ------
    ReadError
        Where a tag is missing or no number.
    """
    position = header.numbers("ImagePositionPatient", 3)
    cosines = header.numbers("ImageOrientationPatient", 6)
    if position is None or cosines is None:
        missing = "ImagePositionPatient" if position is None else "ImageOrientationPatient"
        raise ReadError(f"{missing} is missing, so the slice has no place", where=header.name)
    if max(map(abs, position)) > 1e6:
        raise ReadError("ImagePositionPatient is a kilometre away", where=header.name, got=position)
    slope, intercept = rescale(header)
    return Frame(
        header,
        0,
        np.array(position),
        orientation_of(cosines, header),
        in_plane_spacing(header),
        slope,
        intercept,
        header.text("ImageType") + header.raw.get(TAGS["GEImageKind"], b"").hex(),
    )


def _when(header: Header) -> tuple[Any, ...]:
    """What tells frames at one place apart, most telling first."""
    b_value = header.raw.get(TAGS["DiffusionBValue"], b"")
    diffusion = float(np.frombuffer(b_value[:8], "<f8")[0]) if len(b_value) >= 8 else 0.0
    return (
        header.number("TemporalPositionIdentifier", 0),
        header.number("AcquisitionNumber", 0),
        header.number("TriggerTime", 0),
        header.number("EchoTime", 0),
        header.text("AcquisitionTime"),
        header.number("InstanceNumber", 0),
        diffusion if math.isfinite(diffusion) else 0.0,
    )


def mosaic_frames(header: Header) -> list[Frame]:
    """The tiles of a Siemens mosaic as frames; the position in the file is that of the whole sheet.

    Raises
    ------
    ReadError
        Where the private header that counts and orders the tiles is missing.
    """
    sheet = classic_frame(header)
    if sheet.spacing is None:
        raise ReadError("PixelSpacing is missing", where=header.name)
    found = dataset(header.path, pixels=False)
    count, normal = _siemens(found, header)
    side = math.ceil(math.sqrt(count))
    rows, columns = header.integer("Rows"), header.integer("Columns")
    tile = rows // side, columns // side
    row, column = sheet.orientation[:3], sheet.orientation[3:]
    corner = sheet.position + row * sheet.spacing[1] * (columns - tile[1]) / 2
    corner = corner + column * sheet.spacing[0] * (rows - tile[0]) / 2
    step = header.number("SpacingBetweenSlices", 0) or header.number("SliceThickness", 0)
    if step <= 0:
        raise ReadError("the mosaic does not say how far its slices are apart", where=header.name)
    along = np.cross(row, column)
    if normal is not None and along @ normal < 0:
        along = -along
    return [replace(sheet, index=i, position=corner + along * step * i) for i in range(count)]


def _siemens(found: Any, header: Header) -> tuple[int, Vector | None]:
    """Number of tiles and the direction in which they follow each other, from the private (CSA) header."""
    csa = found.get((0x0029, 0x1010))
    count, normal = 0, None
    if csa is not None and isinstance(csa.value, bytes):
        entries = _csa(csa.value)
        if entries.get("NumberOfImagesInMosaic"):
            count = int(float(entries["NumberOfImagesInMosaic"][0]))
        if len(entries.get("SliceNormalVector", ())) >= 3:
            normal = np.array([float(v) for v in entries["SliceNormalVector"][:3]])
    tag = header.raw.get(0x0019100A, b"")
    if not count and tag:
        text = tag.strip(b"\0 ")
        count = int(text) if text.isdigit() else int.from_bytes(tag[:2], "little")
    if not 1 <= count <= 4096:
        raise ReadError(
            "a Siemens mosaic without its private header cannot be taken apart",
            where=header.name,
            got="no NumberOfImagesInMosaic",
            fix="export it again with private tags kept",
        )
    return count, normal


def _csa(data: bytes) -> dict[str, list[str]]:
    """Entries of a Siemens CSA2 header ('SV10'): name to values as text; empty if it is of another form."""
    entries: dict[str, list[str]] = {}
    if data[:4] != b"SV10":
        return entries
    number, at = int.from_bytes(data[8:12], "little"), 16
    for _ in range(min(number, 1000)):
        name = data[at : at + 64].split(b"\0")[0].decode("latin-1")
        items = int.from_bytes(data[at + 76 : at + 80], "little")
        at += 84
        values = []
        for _ in range(items):
            length = int.from_bytes(data[at : at + 4], "little")
            at += 16
            value = data[at : at + length].split(b"\0")[0].decode("latin-1").strip()
            at += (length + 3) // 4 * 4
            if at > len(data):
                return entries
            if value:
                values.append(value)
        entries[name] = values
    return entries
