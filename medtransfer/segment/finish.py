"""Post-processing: the largest component, or components above a volume, where validation gets better by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.segment.masks import read_pair
from medtransfer.segment.room import zeros

if TYPE_CHECKING:
    from medtransfer.segment.run import SegmentationRun
    from medtransfer.split import Fold

Labels = NDArray[np.uint8]
_GAIN = 1e-4  # of the mean Dice, below which nothing is done
_VOLUMES_MM3 = (10.0, 30.0, 100.0, 300.0, 1000.0)


def dice(found: Labels, reference: Labels, classes: int) -> list[float]:
    """Dice coefficient of each structure; nan where neither mask has it.

    Examples
    --------
    >>> dice(np.array([1, 1, 0], np.uint8), np.array([1, 0, 0], np.uint8), 2)[0].__round__(3)
    0.667
    """
    ours, theirs = (np.bincount(m.ravel(), minlength=classes)[1:classes] for m in (found, reference))
    both = np.bincount(found[found == reference].ravel(), minlength=classes)[1:classes]
    whole = ours + theirs
    return [float(2 * b / w) if w else float("nan") for b, w in zip(both, whole, strict=True)]


def apply_finish(labels: Labels, rule: Mapping[str, Any], voxel_mm3: float, *, in_place: bool = False) -> Labels:
    """Clear the components that a rule takes away.

    Parameters
    ----------
    labels : ndarray of uint8
    rule : mapping
        For each structure, by its number as text, ``'largest'``, a volume in mm³ below which a component is
        cleared, or nothing.
    voxel_mm3 : float
        1 where the voxel size is not known.
    in_place : bool
        Change ``labels`` itself. Components are looked for in the box around a structure, so that a large volume needs
        little memory.

    Examples
    --------
    >>> apply_finish(np.array([[1, 1, 0, 1]], np.uint8), {"1": "largest"}, 1.0).tolist()
    [[1, 1, 0, 0]]
    """
    from scipy import ndimage

    result = labels if in_place else labels.copy()
    for name, what in rule.items():
        box = box_of(labels, int(name)) if what else None
        if box is None:
            continue
        shape = labels[box].shape
        there = np.equal(labels[box], int(name), out=zeros(shape, np.bool_))
        count = int(ndimage.label(there, output=(components := zeros(shape, np.int32))))
        sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in components], axis=0)
        sizes[0] = 0
        kept = np.arange(len(sizes)) == sizes.argmax() if what == "largest" else sizes * voxel_mm3 >= float(what)
        for part, plane in zip(result[box], components, strict=True):
            part[(plane > 0) & ~kept[plane]] = 0
    return result


def box_of(labels: Labels, value: int) -> tuple[slice, ...] | None:
    """The box around the voxels of a value, looked for plane by plane; None where there are none.

    Examples
    --------
    >>> box_of(np.array([[0, 0, 0], [0, 2, 2]], np.uint8), 2), box_of(np.zeros((2, 2), np.uint8), 1)
    ((slice(1, 2, None), slice(1, 3, None)), None)
    """
    there = [np.zeros(n, np.bool_) for n in labels.shape]
    for i, plane in enumerate(labels):
        hit = plane == value
        there[0][i] = hit.any()
        for axis, seen in enumerate(there[1:] if there[0][i] else ()):
            seen |= hit.any(axis=tuple(a for a in range(hit.ndim) if a != axis))
    places = [np.flatnonzero(t) for t in there]
    return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in places) if len(places[0]) else None


def choose_finish(run: SegmentationRun, number: int, fold: Fold) -> dict[str, Any]:
    """For each structure the rule that raises the mean Dice of the validation cases most; none if it gains nothing."""
    pairs = []
    classes = len(run.structures) + 1
    for index in fold.val:
        image, reference, _ = read_pair(run.cohort.cases[index], classes)
        pairs.append((run.raw(index, fold=number), reference, voxel_mm3(image.geometry.spacing_mm)))
    rule: dict[str, Any] = {}
    for value in range(1, classes):
        rule |= {str(value): _best(pairs, value, classes)}
    return rule


def _best(pairs: Sequence[tuple[Labels, Labels, float]], value: int, classes: int) -> str | float | None:
    def mean(change: Callable[[Labels, float], Labels]) -> float:
        scores = [dice(change(found, mm3), reference, classes)[value - 1] for found, reference, mm3 in pairs]
        known = [s for s in scores if not np.isnan(s)]
        return float(np.mean(known)) if known else 0.0

    choices: list[str | float] = ["largest", *_VOLUMES_MM3]
    best: str | float | None = None
    score = mean(lambda found, _: found) + _GAIN
    for choice in choices:
        reached = mean(lambda found, mm3, c=choice: apply_finish(found, {str(value): c}, mm3))  # type: ignore[misc]
        if reached > score:
            best, score = choice, reached
    return best


def voxel_mm3(spacing_mm: Sequence[float] | None) -> float:
    """Volume of a voxel (area of a pixel), 1 where it is not known."""
    return float(np.prod(spacing_mm)) if spacing_mm is not None else 1.0
