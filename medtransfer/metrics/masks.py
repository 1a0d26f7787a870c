"""One predicted mask against its reference: overlap, surface distances in millimetres, volume and lesions.

The surface of a mask is its voxels that have a background voxel, or the image's edge, as a face neighbour (in 2D: its
outline of pixels), each counted once and placed at its centre: the definition of MONAI and MedPy. The one of
DeepMind's surface-distance puts the surface between voxels and weighs its elements by area; its NSD is a little higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.errors import MetricError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskScore:
    """How well a predicted mask of one structure in one case fits the reference.

    Where both masks are empty, overlap and distances are not defined (nan). Where only one is, Dice, IoU and NSD are
    0 and the distances are the diagonal of the image, so that a total miss cannot vanish from a mean.

    Parameters
    ----------
    dice, iou : float
    nsd : float
        Normalised surface Dice: share of both surfaces that lies within the tolerance of the other
        (Nikolov et al. 2021).
    hd95, assd : float
        Millimetres: the larger of the two directed 95th percentiles of surface distances, and the mean of all
        surface distances of both directions.
    volume_reference, volume_predicted, volume_shared : float
        Cubic millimetres; square millimetres for images of two axes.
    lesions, lesions_found, lesions_false : int
        Connected parts (also over edges and corners) of the reference, those of them that share a voxel with the
        prediction, and parts of the prediction that share none with the reference.
    """

    dice: float
    iou: float
    nsd: float
    hd95: float
    assd: float
    volume_reference: float
    volume_predicted: float
    volume_shared: float
    lesions: int
    lesions_found: int
    lesions_false: int

    @property
    def present(self) -> bool:
        """Whether the reference has the structure."""
        return self.volume_reference > 0

    @property
    def predicted(self) -> bool:
        """Whether the prediction has the structure."""
        return self.volume_predicted > 0


def score_mask(
    reference: ArrayLike, predicted: ArrayLike, spacing_mm: Sequence[float], *, tolerance_mm: float
) -> MaskScore:
    """Score the mask of one structure.

    Parameters
    ----------
    reference, predicted : array of bool
        Of one shape, with two or three axes. An axis of a single voxel is left out of surfaces, so that one slice is
        measured by its outline.
    spacing_mm : sequence of float
        Distance of voxel centres along each axis.
    tolerance_mm : float
        Surface distance up to which surfaces agree, for NSD: about what readers differ by.

    Raises
    ------
    MetricError
        Where shapes or spacing do not fit, or spacing or tolerance is not positive.

    Examples
    --------
    >>> a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    >>> a[2:6, 2:6], b[2:6, 3:7] = True, True
    >>> s = score_mask(a, b, (2.0, 1.0), tolerance_mm=0.5)
    >>> s.dice, s.iou, round(s.nsd, 3), s.hd95, s.volume_reference
    (0.75, 0.6, 0.5, 1.0, 32.0)
    """
    a, b = np.asarray(reference, dtype=bool), np.asarray(predicted, dtype=bool)
    spacing = tuple(float(v) for v in spacing_mm)
    if a.shape != b.shape or len(spacing) != a.ndim:
        raise MetricError(
            "a mask does not fit its reference",
            got=f"reference {a.shape}, predicted {b.shape}, spacing of {len(spacing)} axes",
            fix="bring both to one grid",
        )
    if not (min(spacing) > 0 and all(map(math.isfinite, spacing)) and tolerance_mm > 0):
        raise MetricError(
            "spacing and tolerance are positive millimetres", got=f"spacing {spacing}, tolerance {tolerance_mm}"
        )
    voxel = math.prod(spacing)
    size_a, size_b, both = int(a.sum()), int(b.sum()), int((a & b).sum())
    lesions, found, false = _lesions(a, b)
    if size_a and size_b:
        overlap = 2 * both / (size_a + size_b), both / (size_a + size_b - both)
        to_b, to_a = surface_distances(a, b, spacing)
        near = int((to_b <= tolerance_mm).sum() + (to_a <= tolerance_mm).sum())
        surface = (
            near / (len(to_b) + len(to_a)),
            float(max(np.percentile(to_b, 95), np.percentile(to_a, 95))),
            float((to_b.sum() + to_a.sum()) / (len(to_b) + len(to_a))),
        )
    elif size_a or size_b:
        diagonal = math.hypot(*(n * mm for n, mm in zip(a.shape, spacing, strict=True)))
        overlap, surface = (0.0, 0.0), (0.0, diagonal, diagonal)
    else:
        overlap, surface = (math.nan, math.nan), (math.nan, math.nan, math.nan)
    return MaskScore(*overlap, *surface, size_a * voxel, size_b * voxel, both * voxel, lesions, found, false)


def score_masks(
    reference: ArrayLike,
    predicted: ArrayLike,
    spacing_mm: Sequence[float],
    *,
    structures: Mapping[str, int],
    tolerance_mm: float | Mapping[str, float],
) -> dict[str, MaskScore]:
    """Score every structure of a label map.

    Parameters
    ----------
    reference, predicted : array of int
        Label of each voxel.
    spacing_mm : sequence of float
    structures : dict of str to int
        Name and label of each structure.
    tolerance_mm : float or dict of str to float
        For all structures, or for each.

    Examples
    --------
    >>> truth, said = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 2]])
    >>> found = score_masks(truth, said, (1, 1), structures={"head": 1, "tail": 2}, tolerance_mm=1)
    >>> {name: round(s.dice, 3) for name, s in found.items()}
    {'head': 0.8, 'tail': 0.667}
    """
    a, b, found = np.asarray(reference), np.asarray(predicted), {}
    for name, label in structures.items():
        tolerance = tolerance_mm[name] if isinstance(tolerance_mm, Mapping) else tolerance_mm
        found[name] = score_mask(a == label, b == label, spacing_mm, tolerance_mm=tolerance)
    return found


def surface_distances(a: Bools, b: Bools, spacing_mm: Sequence[float]) -> tuple[Floats, Floats]:
    """Distance in mm of every surface voxel of a to the surface of b, and of every one of b to that of a.

    Examples
    --------
    >>> a, b = np.zeros((1, 5), bool), np.zeros((1, 5), bool)
    >>> a[0, 1], b[0, 3] = True, True
    >>> [d.tolist() for d in surface_distances(a, b, (1.0, 0.5))]
    [[1.0], [1.0]]
    """
    from scipy.spatial import cKDTree

    of_a, of_b = _surface(a) * np.asarray(spacing_mm), _surface(b) * np.asarray(spacing_mm)
    return cKDTree(of_b).query(of_a)[0], cKDTree(of_a).query(of_b)[0]


def _surface(mask: Bools) -> NDArray[np.int64]:
    """Indices (m, axes) of the surface voxels of a mask that is not empty."""
    from scipy.ndimage import binary_erosion

    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask))  # a smaller array is quicker
    inside = mask[box]
    faces = np.zeros((3,) * mask.ndim, dtype=bool)
    faces[(1,) * mask.ndim] = True
    for axis, n in enumerate(mask.shape):
        if n > 1:
            faces[tuple(slice(None) if i == axis else 1 for i in range(mask.ndim))] = True
    edge = inside & ~binary_erosion(inside, structure=faces)
    return np.asarray(np.argwhere(edge) + [s.start for s in box], dtype=np.int64)


def _lesions(reference: Bools, predicted: Bools) -> tuple[int, int, int]:
    from scipy.ndimage import label

    together = np.ones((3,) * reference.ndim, dtype=int)
    of_reference, lesions = label(reference, structure=together)
    of_predicted, parts = label(predicted, structure=together)
    both = reference & predicted
    return lesions, len(np.unique(of_reference[both])), parts - len(np.unique(of_predicted[both]))
