"""An image is an array and where it lies: voxels and their geometry in RAS+ millimetres."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of an image lie.

    Parameters
    ----------
    affine : ndarray (4, 4) or None
        Maps voxel indices to RAS+ millimetres (nibabel's convention). None for a plain image.
    spacing_mm : tuple of float or None
        Distance between neighbouring voxels along each spatial array axis: (x, y, z) for a volume,
        (between rows, between columns) for a plain image. None where the file does not say.

    Examples
    --------
    >>> Geometry.from_affine(np.diag([1.0, 2.0, 3.0, 1.0])).spacing_mm
    (1.0, 2.0, 3.0)
    """

    affine: NDArray[np.float64] | None = None
    spacing_mm: tuple[float, ...] | None = None

    @classmethod
    def from_affine(cls, affine: NDArray[np.float64]) -> Geometry:
        """Geometry of a volume: spacing is the length of the affine's columns."""
        affine = np.asarray(affine, dtype=np.float64)
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        return cls(affine=affine, spacing_mm=tuple(float(v) for v in lengths))

    @property
    def orientation(self) -> str | None:
        """Axis codes such as ``'RAS'``: the direction in which each array axis grows."""
        if self.affine is None:
            return None
        from nibabel.orientations import aff2axcodes

        return "".join(code or "?" for code in aff2axcodes(self.affine))


@dataclass(frozen=True, eq=False)
class Image:
    """Voxels with their geometry, as stored: nothing windowed, nothing inverted.

    Parameters
    ----------
    array : ndarray
        A volume is ``[x, y, z]``, ``[x, y, z, t]`` or (``rgb``) ``[x, y, z, 3]`` in closest-canonical
        RAS; a plain image is ``[rows, cols]`` or ``[frames, rows, cols]``, with a last axis of 3 if ``rgb``.
        Values are physical (after rescale or Modality LUT): Hounsfield units for CT.
    geometry : Geometry
        Always there; its ``affine`` is None for a plain image.
    modality : str
        DICOM modality (``'CT'``, ``'MR'``, ``'CR'`` ...) or ``''``.
    rgb : bool
        Whether the last axis holds red, green and blue.
    inverted : bool
        True for MONOCHROME1: the smallest value is meant to be shown white. ``Prepare`` inverts it.
    padding : ndarray of bool, same shape as array, or None
        Where the scanner wrote padding instead of a measurement.
    value_range : tuple of float or None
        Smallest and largest value the file could hold, in the array's units; what inversion mirrors at.

    Examples
    --------
    >>> Image(np.zeros((2, 3)), Geometry()).kind
    'image'
    """

    array: Array
    geometry: Geometry = field(default_factory=Geometry)
    modality: str = ""
    rgb: bool = False
    inverted: bool = False
    padding: NDArray[np.bool_] | None = None
    value_range: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        """``'volume'`` if the geometry has an affine, else ``'image'``."""
        return "image" if self.geometry.affine is None else "volume"

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Shape of one 3D frame of a volume, or of one 2D frame of an image, without time and colour."""
        if self.kind == "volume":
            return self.array.shape[:3]
        return self.array.shape[:-1][-2:] if self.rgb else self.array.shape[-2:]

    def __repr__(self) -> str:
        where = self.geometry.orientation or "plain"
        return (
            f"Image({self.modality or '?'} {self.kind} {self.array.shape} {self.array.dtype}, {where}, "
            f"spacing_mm={self.geometry.spacing_mm}{', rgb' if self.rgb else ''})"
        )
