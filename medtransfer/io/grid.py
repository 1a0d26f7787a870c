"""Whether an image and a mask lie on the same voxels."""

from __future__ import annotations

import numpy as np

from medtransfer.errors import ReadError
from medtransfer.image import Image


def check_same_grid(image: Image, mask: Image, *, where: str = "", tolerance: float = 1e-3) -> None:
    """Refuse a mask whose voxels are not those of its image.

    Parameters
    ----------
    image, mask : Image
        Compared without time and colour.
    where : str
        What the two belong to, for the message.
    tolerance : float
        Largest distance of corresponding corners, in voxels.

    Raises
    ------
    ReadError
        Where shape, kind or place differ; the message says by how much.

    Examples
    --------
    >>> from medtransfer.image import Geometry
    >>> image = Image(np.zeros((2, 3, 4)), Geometry.from_affine(np.eye(4)))
    >>> check_same_grid(image, image)
    >>> moved = Image(np.zeros((2, 3, 4)), Geometry.from_affine(np.diag([2.0, 1, 1, 1])))
    >>> check_same_grid(image, moved)
    Traceback (most recent call last):
    ...
    medtransfer.errors.ReadError: the mask lies on another grid; found corners up to 1.000 voxels apart
    """
    fix = "resample the mask onto the image, by nearest neighbour"
    if image.kind != mask.kind or image.spatial_shape != mask.spatial_shape:
        got = f"image {image.spatial_shape}, mask {mask.spatial_shape}"
        raise ReadError("the mask has another shape than its image", where=where, got=got, fix=fix)
    ours, theirs = image.geometry.affine, mask.geometry.affine
    if ours is None or theirs is None:
        return
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.spatial_shape], [1])).reshape(4, -1)
    apart = np.linalg.norm(((np.linalg.inv(ours) @ theirs - np.eye(4)) @ corners)[:3], axis=0).max()
    if apart > tolerance:
        got = f"corners up to {apart:.3f} voxels apart"
        raise ReadError("the mask lies on another grid", where=where, got=got, fix=fix if where else "")
