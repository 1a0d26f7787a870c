"""Reference masks: read on their image's voxels, or refused with a reason."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Case
from medtransfer.errors import DataError, ReadError
from medtransfer.image import Image
from medtransfer.io import read
from medtransfer.io.grid import check_same_grid

Labels = NDArray[np.uint8]


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
    mask = read(case.mask, labels=True)
    array = _segments(mask)
    labels, note = array, ""
    if resample:
        try:
            check_same_grid(image, Image(array, mask.geometry), where=case.alias)
        except ReadError:
            labels, note = onto(Image(array, mask.geometry), image), "mask resampled by nearest neighbour"
    else:
        check_same_grid(image, Image(array, mask.geometry), where=case.alias)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            "the mask holds labels that are no class",
            where=case.alias,
            got=f"{int(labels.min())} to {int(labels.max())}, {classes} classes with the background",
            fix="name all structures, or set other labels to 0",
        )
    return image, labels.astype(np.uint8), note


def _segments(mask: Image) -> NDArray[np.generic]:
    """Label of each voxel; the segments of a DICOM SEG, one a frame of the last axis, become 1, 2, 3."""
    array = mask.array
    if mask.rgb:
        raise DataError("a mask in colour has no labels", got=f"shape {array.shape}", fix="save one number a pixel")
    if mask.kind == "volume" and array.ndim == 4:
        label: NDArray[np.generic] = (array > 0).argmax(axis=-1) + (array > 0).any(axis=-1)
        return label
    if mask.modality == "SEG":
        return (array > 0).astype(np.uint8)
    return array


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
