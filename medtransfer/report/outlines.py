"""Reference and prediction as outlines on three planes through the place where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from medtransfer.image import Image
from medtransfer.report.drawings import png
from medtransfer.report.volumes import LIMIT, Scene, around, scene, window_of
from medtransfer.report.words import Words

Labels = NDArray[np.uint8]
Lines = tuple[NDArray[np.float64], ...]
PLANES = ("sagittal", "coronal", "axial")  # across the first, second and third axis of a volume


@dataclass(frozen=True, eq=False)
class View:
    """One plane: grey values, and outlines as points (x, y) in mm from its upper left corner.

    Parameters
    ----------
    plane : str
        ``'axial'``, ``'coronal'``, ``'sagittal'``, or ``'image'`` of a plain image.
    grey : ndarray of uint8 [rows, cols]
    size_mm : (width, height)
    reference, predicted : tuple of ndarray (points, 2)
    """

    plane: str
    grey: NDArray[np.uint8]
    size_mm: tuple[float, float]
    reference: Lines = field(repr=False)
    predicted: Lines = field(repr=False)


@dataclass(frozen=True, eq=False)
class Seen:
    """A case as the report shows it: pseudonym, mean Dice of its structures, its planes, and its volumes."""

    case: str
    dice: float
    views: tuple[View, ...] = field(repr=False)
    scene: Scene | None = field(default=None, repr=False)


def look(
    case: str, dice: float, image: Image, reference: Labels, predicted: Labels, *, limit: int = LIMIT // 10
) -> Seen:
    """Cut the planes in which reference and prediction differ in most voxels, around the structures.

    Axial and coronal planes have the patient's right on the left, sagittal ones the front. The volumes around the
    structures take at most ``limit`` characters of the page; 0 leaves them out.

    Examples
    --------
    >>> from medtransfer.image import Geometry
    >>> image = Image(np.zeros((8, 8, 8)), Geometry.from_affine(np.eye(4)))
    >>> a, b = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    >>> a[2:5, 2:5, 3], b[2:5, 3:6, 3] = 1, 1
    >>> [(v.plane, v.grey.shape, len(v.reference)) for v in look("c", 0.7, image, a, b).views]
    [('axial', (8, 8), 1), ('coronal', (8, 8), 1), ('sagittal', (8, 8), 1)]
    """
    array = image.array.mean(-1) if image.rgb else image.array
    spacing = image.geometry.spacing_mm or (1.0,) * reference.ndim
    differ = reference != predicted
    if not differ.any():
        differ = reference > 0
    box = around((reference > 0) | (predicted > 0))
    low, high = window_of(array[box])
    if reference.ndim == 2:
        return Seen(case, dice, (_view("image", array[box], reference[box], predicted[box], spacing, low, high),))
    if not differ.any():  # nothing is marked: the planes through the middle
        differ = np.zeros(differ.shape, bool)
        differ[tuple(n // 2 for n in differ.shape)] = True
    views = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        at = int(differ.sum(axis=others).argmax())
        cut = tuple(at if a == axis else box[a] for a in range(3))
        grey = array[cut][::-1, ::-1].T
        ours, theirs = (np.ascontiguousarray(a[cut][::-1, ::-1].T) for a in (reference, predicted))
        views.append(_view(PLANES[axis], grey, ours, theirs, (spacing[others[1]], spacing[others[0]]), low, high))
    masks = {"reference": reference, "predicted": predicted}
    return Seen(case, dice, tuple(views), scene(case, image, masks, limit=limit) if limit else None)


def _view(
    plane: str, array: NDArray[np.generic], reference: Labels, predicted: Labels, spacing: Sequence[float],
    low: float, high: float,
) -> View:  # fmt: skip
    grey = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    rows, cols = array.shape
    size = (cols * spacing[1], rows * spacing[0])
    lines = (outlines(m, spacing) for m in (reference, predicted))
    return View(plane, (grey * 255).round().astype(np.uint8), size, *lines)


def outlines(labels: Labels, spacing: Sequence[float]) -> Lines:
    """Outline of every structure of a plane, points (x, y) in mm.

    Examples
    --------
    >>> mask = np.zeros((4, 4), np.uint8)
    >>> mask[1:3, 1:3] = 1
    >>> line, = outlines(mask, (1.0, 2.0))
    >>> line.min(axis=0).tolist(), line.max(axis=0).tolist()
    ([2.0, 1.0], [6.0, 3.0])
    """
    from contourpy import contour_generator

    found: list[NDArray[np.float64]] = []
    for value in np.unique(labels[labels > 0]):
        ring = np.pad((labels == value).astype(np.float64), 1)
        lines = contour_generator(z=ring).lines(0.5)  # between the centres of voxels; padded, centres start at 1
        found += [(np.asarray(line) - 0.5) * np.array([spacing[1], spacing[0]]) for line in lines]
    return tuple(found)


def drawing(view: View, w: Words, case: str) -> Markup:
    """The plane as SVG: the image inside it, the reference solid orange, the prediction dashed blue."""
    width, height = view.size_mm
    unit = max(width, height) / 100
    paths = []
    for kind, lines in (("reference", view.reference), ("predicted", view.predicted)):
        d = " ".join("M" + "L".join(f"{x / unit:.2f} {y / unit:.2f}" for x, y in line) + "Z" for line in lines)
        if d:
            paths += [f'<path class="halo" d="{d}"/>', f'<path class="{kind}" d="{d}"/>']
    name = w.plain(f"plane.{view.plane}")
    box = f"{width / unit:.2f} {height / unit:.2f}"
    size = 'width="{}" height="{}"'.format(*box.split())
    alt = escape(w.plain("alt.outlines", plane=name, case=case))
    return Markup(  # noqa: S704  numbers and our own words
        f'<svg class="outlined" viewBox="0 0 {box}" role="img" aria-label="{alt}">'
        f'<image href="{png(view.grey)}" {size} preserveAspectRatio="none"/>{"".join(paths)}</svg>'
    )
