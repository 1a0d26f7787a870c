"""Reference masks: read on their image's voxels, or refused with a reason."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Case
from medtransfer.errors import DataError, ReadError
from medtransfer.image import Image
from medtransfer.io import read
from medtransfer.io.grid import check_same_grid
from medtransfer.io.segments import is_segmentation, read_segmentation

Labels = NDArray[np.uint8]
_OFF = 0.05  # voxels that a pixel of a DICOM SEG may lie beside its voxel


def read_pair(case: Case, classes: int, *, resample: bool = False) -> tuple[Image, Labels, str]:
    """A case's image and its mask on the same voxels.

    Parameters
    ----------
    case : Case
        With a mask: a NIfTI or raster file of whole numbers, or a DICOM SEG object.
    classes : int
        Background included; larger labels are refused.
    resample : bool
        Take a mask of another grid to the image's by nearest neighbour, instead of refusing it.

    Returns
    -------
    image : Image
    labels : ndarray of uint8
        On the image's spatial axes.
    note : str
        What was done to the mask; ``''`` if nothing.

    Raises
    ------
    ReadError
        Where the mask lies on other voxels.
    DataError
        Where the case has no mask, or labels out of range.
    """
    if case.mask is None:
        raise DataError("the case has no mask", where=case.alias, fix="Cohort.from_csv(..., mask='mask')")
    image = case.read()
    if image.geometry.affine is not None and is_segmentation(case.mask):
        return image, *_from_segments(case, image, classes, resample)
    mask = read(case.mask, labels=True)
    array = _plain(mask)
    labels, note = array, ""
    if resample:
        try:
            check_same_grid(image, Image(array, mask.geometry), where=case.alias)
        except ReadError:
            labels, note = onto(Image(array, mask.geometry), image), "mask resampled by nearest neighbour"
    else:
        check_same_grid(image, Image(array, mask.geometry), where=case.alias)
    return image, _checked(labels, case.alias, classes), note


def _checked(labels: NDArray[np.generic], where: str, classes: int) -> Labels:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            "the mask holds labels that are no class",
            where=where,
            got=f"{low} to {high}, {classes} classes with the background",
            fix="name all structures, or set other labels to 0",
        )
    return labels.astype(np.uint8)


def _from_segments(case: Case, image: Image, classes: int, resample: bool) -> tuple[Labels, str]:
    assert case.mask is not None
    labels, off = read_segmentation(case.mask, image)
    if off > _OFF and not resample:
        raise ReadError(
            "the mask lies on another grid", where=case.alias, got=f"pixels up to {off:.3f} voxels off",
            fix="resample the mask onto the image, by nearest neighbour",
        )  # fmt: skip
    return _checked(labels, case.alias, classes), "mask resampled by nearest neighbour" if off > _OFF else ""


def _plain(mask: Image) -> NDArray[np.generic]:
    if mask.rgb or mask.array.ndim != len(mask.spatial_shape):
        raise DataError("a mask has one number a voxel", got=f"shape {mask.array.shape}", fix="save labels as 0, 1, 2")
    return mask.array


def onto(mask: Image, image: Image) -> NDArray[np.generic]:
    """A mask's labels at an image's voxels, by nearest neighbour; 0 outside of the mask."""
    ours, theirs = image.geometry.affine, mask.geometry.affine
    if ours is None or theirs is None:
        raise ReadError("without a place in space a mask cannot be resampled", got=f"shape {mask.array.shape}")
    step = np.linalg.inv(theirs) @ ours
    result = np.zeros(image.spatial_shape, mask.array.dtype)
    j, k = np.meshgrid(*(np.arange(n) for n in image.spatial_shape[1:]), indexing="ij")
    for i in range(image.spatial_shape[0]):  # a plane at a time
        at = np.tensordot(step[:3], np.stack([np.full_like(j, i), j, k, np.ones_like(j)]), axes=1)
        index = np.rint(at).astype(np.int64)
        inside = np.all([(v >= 0) & (v < n) for v, n in zip(index, mask.array.shape, strict=True)], axis=0)
        result[i][inside] = mask.array[tuple(v[inside] for v in index)]
    return result
