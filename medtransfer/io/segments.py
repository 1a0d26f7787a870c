"""DICOM SEG objects on the voxels of an image, and the places of a series' slices, for writing one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ReadError
from medtransfer.image import Image
from medtransfer.io import pixels
from medtransfer.io.decode import Values
from medtransfer.io.dicom import SEGMENTATION, groups
from medtransfer.io.enhanced import enhanced_frames
from medtransfer.io.frames import Frame
from medtransfer.io.parsed import dataset
from medtransfer.io.record import SeriesRecord
from medtransfer.io.tagwalk import read_header
from medtransfer.io.volume import canonical

LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"


@dataclass(frozen=True, eq=False)
class Slices:
    """Where the slices of a regular series lie, lowest first.

    Parameters
    ----------
    frames : tuple of Frame
        Position, orientation, spacing and file of each.
    affine : ndarray (4, 4)
        Index (column, row, slice) to RAS+ millimetres.
    rows, columns : int
        Of each slice.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    rows: int
    columns: int

    def stack(self, labels: Values) -> Values:
        """A canonical volume ``[x, y, z]`` as the series' own slices ``[slices, rows, columns]``."""
        stacked = np.zeros((len(self.frames), self.rows, self.columns), labels.dtype)
        turned, _ = canonical(stacked.transpose(2, 1, 0), self.affine)  # a view
        turned[...] = labels
        return stacked


def slices_of(record: SeriesRecord) -> Slices:
    """Places of the slices of a series that is read as a volume.

    Raises
    ------
    ReadError
        Where the series is no volume.
    """
    made = groups([read_header(file) for file in record.files])
    group = made[min(record.part, len(made) - 1)]
    if group.layout is None or group.layout.affine is None or any(f is None for f in group.layout.grid[0]):
        raise ReadError("the series is no volume", where=record.files[0].name, got=record.kind)
    affine = group.layout.affine
    whole = record.shape[:3]
    columns, rows = _in_plane(whole, affine)
    return Slices(tuple(f for f in group.layout.grid[0] if f is not None), affine, rows, columns)


def _in_plane(shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[int, int]:
    """Columns and rows of a slice of a canonical volume of this shape."""
    order = canonical(np.arange(27).reshape(3, 3, 3), affine)[0].strides
    places = sorted(range(3), key=lambda i: -abs(order[i]))  # array axes in the order of columns, rows, slices
    return shape[places[0]], shape[places[1]]


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM SEG object."""
    try:
        return read_header(path).text("SOPClassUID") in (SEGMENTATION, LABELMAP)
    except (ReadError, OSError):
        return False


def segment_names(path: Path) -> dict[int, str]:
    """Number and label of each segment that a DICOM SEG object describes, marked or not.

    Raises
    ------
    ReadError
        Where the object describes none.
    """
    found = dataset(path, pixels=False).get("SegmentSequence") or []
    names = {int(s.get("SegmentNumber") or 0): str(s.get("SegmentLabel") or "").strip() for s in found}
    if not names or min(names) < 0:
        raise ReadError("the object describes no segments", where=path.name)
    return names


def read_segmentation(path: Path, image: Image, *, tolerance: float = 0.05) -> tuple[NDArray[np.uint8], float]:
    """The segments of a DICOM SEG object at the voxels of an image; frames may be left out where they are empty.

    Parameters
    ----------
    path : Path
    image : Image
        A volume.
    tolerance : float
        In voxels; only for the message.

    Returns
    -------
    labels : ndarray of uint8 [x, y, z]
        Segment number of each voxel; where segments overlap, the higher number. Of a fractional object, voxels
        of at least half of the largest value.
    off : float
        Largest distance, in voxels, of a marked pixel from the voxel it went to.

    Raises
    ------
    ReadError
        Where it does not say where its frames lie, or marks nothing inside of the image.
    """
    if image.geometry.affine is None:
        raise ReadError("a DICOM SEG has no place on a plain image", where=path.name, fix="give the series it is of")
    header = read_header(path)
    frames = enhanced_frames(header)
    if not frames:
        raise ReadError("the frames do not say where they lie", where=path.name)
    found = dataset(header.path, pixels=False)
    stored = pixels.stored_values(header, pixels.pixel_format(header))
    labelmap = header.text("SOPClassUID") == LABELMAP
    least = (
        (int(found.get("MaximumFractionalValue") or 1) + 1) // 2 if found.get("SegmentationType") == "FRACTIONAL" else 1
    )
    inverse = np.linalg.inv(image.geometry.affine)
    labels = np.zeros(image.spatial_shape, np.uint8)
    off, outside = 0.0, 0
    for frame in sorted(frames, key=lambda f: f.order):
        values = stored[frame.index]
        rows, columns = np.nonzero(values >= least)
        if not len(rows):
            continue
        number = values[rows, columns] if labelmap else np.full(len(rows), frame.order[0])
        at = inverse @ _plane(frame, path.name) @ np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
        index = np.rint(at[:3]).astype(np.int64)
        off = max(off, float(np.abs(at[:3] - index).max()))
        inside = np.all((index >= 0) & (index < np.array(labels.shape)[:, None]), axis=0)
        outside += int((~inside).sum())
        i, j, k = index[:, inside]
        labels[i, j, k] = number[inside]
    if outside and not labels.any():
        raise ReadError("everything that is marked lies outside of the image", where=path.name, got=f"{outside} pixels")
    return labels, off


def _plane(frame: Frame, name: str) -> NDArray[np.float64]:
    """(column, row, 0, 1) to RAS+ millimetres."""
    if frame.spacing is None:
        raise ReadError("there is no Pixel Spacing", where=name)
    plane = np.zeros((4, 4))
    plane[:3, 0], plane[:3, 1] = frame.orientation[:3] * frame.spacing[1], frame.orientation[3:] * frame.spacing[0]
    plane[:3, 3], plane[3, 3] = frame.position, 1
    plane[:2] *= -1  # LPS to RAS+
    return plane
