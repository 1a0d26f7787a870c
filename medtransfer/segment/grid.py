"""Between an image's own voxels and the plan's grid, there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.image import Geometry, Image
from medtransfer.prepare import resampling_matrix
from medtransfer.segment.plan import Plan

Labels = NDArray[np.uint8]


def to_grid(plan: Plan, image: Image, labels: Labels | None = None, *, where: str = "") -> tuple[Any, Labels | None]:
    """An image, and its mask, as the network sees them.

    Returns
    -------
    array : ndarray of float32 [channels, ...]
        Values in [0, 1]; axes (z, y, x) or (rows, columns).
    labels : ndarray of uint8 [...] or None
        Each voxel has the class whose interpolated share is largest.
    """
    array = plan.prepare(image)(image, where=where)
    if labels is None:
        return array, None
    turned = turn(labels, image)
    if turned.shape == array.shape[1:]:
        return array, np.ascontiguousarray(turned)
    best = np.full(array.shape[1:], -1.0, np.float32)
    found = np.zeros(array.shape[1:], np.uint8)
    matrices = [resampling_matrix(n, m, s) for n, m, s in _steps(plan, image, turned.shape, array.shape[1:])]
    for value in np.unique(turned):
        share = (turned == value).astype(np.float32)
        for axis, matrix in enumerate(matrices):
            share = np.moveaxis(np.tensordot(matrix, share, axes=(1, axis)), 0, axis)
        better = share > best
        best[better], found[better] = share[better], value
    return array, found


def in_slices(image: Image) -> list[Image]:
    """The axial slices of a volume from below to above, each an image with rows to the back and columns to the left."""
    spacing = image.geometry.spacing_mm
    order, _ = _turning(image)
    flat = Geometry(spacing_mm=None if spacing is None else (spacing[order[1]], spacing[order[2]]))
    padding = [None] * image.spatial_shape[order[0]] if image.padding is None else turn(image.padding, image)
    return [
        replace(image, array=plane, geometry=flat, padding=gone)
        for plane, gone in zip(turn(image.array, image), padding, strict=True)
    ]


def turn(array: NDArray[Any], image: Image) -> NDArray[Any]:
    """From an image's spatial axes to the network's: a volume [x, y, z] in RAS becomes [z, y, x] from left and back."""
    order, flips = _turning(image)
    return array[flips].transpose([*order, *range(len(order), array.ndim)])


def turn_back(array: NDArray[Any], image: Image) -> NDArray[Any]:
    """The inverse of :func:`turn`."""
    order, flips = _turning(image)
    return np.ascontiguousarray(array.transpose(np.argsort(order))[flips])


def _turning(image: Image) -> tuple[list[int], tuple[slice, ...]]:
    if image.kind == "image":
        return [0, 1], (slice(None), slice(None))
    codes = image.geometry.orientation or "RAS"
    flips = tuple(slice(None, None, -1 if code in "RAI" else 1) for code in codes)
    return [next(i for i, code in enumerate(codes) if code in pair) for pair in ("IS", "PA", "LR")], flips


def native_matrices(plan: Plan, image: Image, shape: tuple[int, ...]) -> list[NDArray[np.float32] | None]:
    """For each axis of the network the weights that take the plan's grid to the image's own voxels.

    None where both are the same.
    """
    order, _ = _turning(image)
    own = tuple(image.spatial_shape[i] for i in order)
    found: list[NDArray[np.float32] | None] = []
    for n, m, step in _steps(plan, image, own, shape):
        same = n == m and (step is None or abs(step - 1) < 1e-6)
        found.append(None if same else resampling_matrix(m, n, 1 / (n / m if step is None else step)))
    return found


def _steps(
    plan: Plan, image: Image, own: tuple[int, ...], grid: tuple[int, ...]
) -> list[tuple[int, int, float | None]]:
    """For each axis of the network: voxels of the image, of the grid, and the distance of the latter in the former."""
    order, _ = _turning(image)
    spacing = image.geometry.spacing_mm
    if plan.spacing_mm is None or spacing is None:
        return [(n, m, None) for n, m in zip(own, grid, strict=True)]
    wanted = plan.spacing_mm if image.kind == "image" else plan.spacing_mm[::-1]
    return [(n, m, t / spacing[i]) for n, m, t, i in zip(own, grid, wanted, order, strict=True)]
