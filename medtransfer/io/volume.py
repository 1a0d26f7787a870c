"""From frames to a volume: sort them along their normal, say what is wrong with the grid, and find its affine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.image import Array
from medtransfer.io.findings import Finding
from medtransfer.io.frames import Frame

SAME_PLACE_MM = 0.01
SAME_DIRECTION = 0.01


@dataclass(eq=False)
class Layout:
    """How the frames of one stack make a volume.

    Parameters
    ----------
    grid : list of lists of Frame or None
        ``grid[t][z]``; None where a segmentation has no frame for a place (it is empty there).
    affine : ndarray (4, 4)
        Index (column, row, slice) to RAS+ millimetres.
    copies : list of pairs of Frame
        A frame kept and one that says it is the same.
    findings : list of Finding
    """

    grid: list[list[Frame | None]] = field(default_factory=list)
    affine: NDArray[np.float64] | None = None
    copies: list[tuple[Frame, Frame]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether something forbids to make a volume of the frames."""
        return any(f.severity == "error" for f in self.findings)


def by_orientation(frames: list[Frame]) -> list[list[Frame]]:
    """Frames in groups of one orientation, the largest first."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            first = group[0].orientation
            if first is frame.orientation or np.abs(first - frame.orientation).max() < SAME_DIRECTION:
                group.append(frame)
                break
        else:
            groups.append([frame])
    return sorted(groups, key=len, reverse=True)


def arrange(frames: list[Frame], *, sparse: bool = False) -> Layout:
    """Make a grid of frames of one orientation and one size.

    Parameters
    ----------
    frames : list of Frame
        At least two, of one orientation.
    sparse : bool
        Whether a place without a frame is empty (segmentations) instead of missing.
    """
    layout = Layout()
    first = frames[0]
    if first.spacing is None or any(f.spacing is None for f in frames):
        layout.findings.append(_error("missing spacing", "there is no Pixel Spacing, so the volume has no size", first))
        return layout
    spacings = np.array([f.spacing for f in frames])
    if np.ptp(spacings, axis=0).max() > 1e-3 * max(first.spacing):
        layout.findings.append(_error("mixed spacing", "Pixel Spacing differs between the slices", first))
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    places = _places(frames, normal, layout)
    depths = np.array([place[0].position for place in places]) @ normal
    if len(places) < 2:
        text = f"all {len(frames)} slices lie at one place, so they are no volume"
        layout.findings.append(_error("not a volume", text, first))
        return layout
    counts = Counter(len(place) for place in places)
    times = counts.most_common(1)[0][0] if not sparse else 0
    if sparse:
        keys = sorted({f.when for f in frames})
        layout.grid = [[next((f for f in place if f.when == key), None) for place in places] for key in keys]
    elif len(counts) > 1:
        odd = next(place for place in places if len(place) != times)
        text = f"a place holds {len(odd)} different slices where the others hold {times}"
        layout.findings.append(_error("duplicate" if times == 1 else "incomplete time series", text, odd[-1]))
        return layout
    else:
        layout.grid = [[place[t] for place in places] for t in range(times)]
    places = _check_depths(depths, places, layout, sparse)
    if layout.broken:
        return layout
    low, high = places[0][0].position, places[-1][0].position
    steps = round((depths[-1] - depths[0]) / np.diff(depths).min()) if sparse else len(places) - 1
    step = (high - low) / steps
    _check_line(places, step, normal, layout, sparse)
    if sparse and steps != len(places) - 1:
        numbers = np.rint((depths - depths[0]) / np.diff(depths).min()).astype(int)
        for t, line in enumerate(layout.grid):
            filled: list[Frame | None] = [None] * (steps + 1)
            for number, frame in zip(numbers, line, strict=True):
                filled[number] = frame
            layout.grid[t] = filled
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.spacing[1], column * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, low
    affine[:2] *= -1  # DICOM counts to the left and back, RAS+ to the right and front
    layout.affine = affine
    return layout


def _places(frames: list[Frame], normal: NDArray[np.float64], layout: Layout) -> list[list[Frame]]:
    """Frames at one depth together, in the order of time; what says it is the same frame is set apart."""
    depths = np.array([f.position for f in frames]) @ normal
    order = np.argsort(depths, kind="stable")
    starts = np.flatnonzero(np.diff(depths[order]) >= SAME_PLACE_MM) + 1
    places = [[frames[int(i)] for i in part] for part in np.split(order, starts)]
    for number, place in enumerate(places):
        if len(place) == 1:
            continue
        kept: list[Frame] = []
        for frame in sorted(place, key=lambda f: (f.when, f.header.path, f.index)):
            twin = next((k for k in kept if _same(k, frame)), None)
            if twin is None:
                kept.append(frame)
            else:
                layout.copies.append((twin, frame))
        places[number] = kept
    for _, copy in layout.copies[:1]:
        text = f"{len(layout.copies)} slice(s) are there twice; copies with equal pixels are left out"
        layout.findings.append(Finding("duplicate", "warning", text, copy.header.name))
    return places


def _same(one: Frame, other: Frame) -> bool:
    same_instance = one.header.text("SOPInstanceUID") == other.header.text("SOPInstanceUID") != ""
    return one.index == other.index and (same_instance or one.when == other.when) and one.header is not other.header


def _check_depths(
    depths: NDArray[np.float64], places: list[list[Frame]], layout: Layout, sparse: bool
) -> list[list[Frame]]:
    gaps = np.diff(depths)
    usual = float(gaps.min() if sparse else np.sort(gaps)[(len(gaps) - 1) // 2])  # a lower median: real gaps only widen
    ratio = gaps / usual
    if sparse:
        if np.abs(ratio - np.rint(ratio)).max() > 0.1:
            layout.findings.append(_error("uneven spacing", "the frames lie on no even grid", places[0][0]))
        return places
    wide = np.flatnonzero(ratio > 1.5)
    if len(wide) and np.all(np.abs(ratio - np.rint(ratio)) < 0.1):
        missing = int(np.rint(ratio[wide]).sum() - len(wide))
        where = ", ".join(str(int(w) + 1) for w in wide[:5])
        text = f"{missing} slice(s) are missing after slice {where} of {len(depths)} (step {usual:.3f} mm)"
        layout.findings.append(_error("gap", text, places[int(wide[0])][0]))
        return places
    even = np.linspace(depths[0], depths[-1], len(depths))
    worst = float(np.abs(depths - even).max()) / usual
    if worst > 0.1 or len(wide):
        text = f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart"
        layout.findings.append(_error("uneven spacing", text, places[int(np.argmax(gaps))][0]))
    elif worst > 0.03:
        text = f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart; their mean is taken"
        layout.findings.append(Finding("uneven spacing", "warning", text, places[0][0].header.name))
    return places


def _check_line(
    places: list[list[Frame]], step: NDArray[np.float64], normal: NDArray[np.float64], layout: Layout, sparse: bool
) -> None:
    first = places[0][0]
    pixel = min(first.spacing or (1.0, 1.0))
    aside = step - normal * (step @ normal)
    shift = float(np.linalg.norm(aside))
    depth = float(step @ normal)
    total = shift * (len(places) - 1)
    if total > 0.25 * pixel and shift > 0.005 * depth:
        angle = float(np.degrees(np.arctan2(shift, depth)))
        text = f"slices are shifted along their plane by {angle:.1f} degrees (gantry tilt); the affine is sheared"
        layout.findings.append(Finding("tilt", "warning", text, first.header.name))
    positions = np.array([f.position for place in places for f in place])
    offsets = positions - first.position
    flat = offsets - np.outer(offsets @ normal, normal)
    ideal = np.outer(offsets @ normal / depth, aside)
    if float(np.linalg.norm(flat - ideal, axis=1).max()) > max(0.5 * pixel, 0.5):
        layout.findings.append(_error("not on a line", "the slices are shifted against each other", first))


def _error(name: str, message: str, frame: Frame) -> Finding:
    return Finding(name, "error", message, frame.header.name)


def canonical(array: Array, affine: NDArray[np.float64]) -> tuple[Array, NDArray[np.float64]]:
    """Permute and flip the first three axes so that they grow to the right, front and top, as a view.

    Parameters
    ----------
    array : ndarray [i, j, k, ...]
    affine : ndarray (4, 4)
        Index to RAS+ millimetres.

    Returns
    -------
    array, affine
        The closest-canonical form, the same as nibabel's ``as_closest_canonical``.

    Examples
    --------
    >>> turned, affine = canonical(np.arange(2).reshape(2, 1, 1), np.diag([-1.0, 1, 1, 1]))
    >>> turned.ravel().tolist(), affine[0].tolist()
    ([1, 0], [1.0, 0.0, 0.0, -1.0])
    """
    axes = _axes(affine)
    order = np.argsort(axes[:, 0])
    array = array.transpose(*order, *range(3, array.ndim))
    turned = affine.copy()
    turned[:, :3] = affine[:, order]
    for axis, flip in enumerate(axes[order, 1]):
        if flip < 0:
            turned[:3, 3] += turned[:3, axis] * (array.shape[axis] - 1)
            turned[:3, axis] *= -1
            array = np.flip(array, axis)
    return array, turned


def _axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each array axis the nearest one of space and its direction, as nibabel's ``io_orientation``."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    rows = np.abs(cosines).argmax(axis=0)
    nearest = cosines[rows, (0, 1, 2)]
    if set(rows.tolist()) == {0, 1, 2} and np.abs(nearest).min() > 0.9:  # nothing to weigh
        return np.stack([rows, np.sign(nearest)], axis=1)
    from nibabel.orientations import io_orientation

    weighed: NDArray[np.float64] = io_orientation(affine)
    return weighed
