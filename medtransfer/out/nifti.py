"""Masks as NIfTI, on the exact grid of the file they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import DataError
from medtransfer.image import Image
from medtransfer.io.mapped import scratch
from medtransfer.io.nifti import is_nifti, read_nifti_header
from medtransfer.io.volume import canonical

# the fields of a header that place its voxels, which readers weigh differently where they disagree
_PLACE = ("xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
          "sform_code", "srow_x", "srow_y", "srow_z")  # fmt: skip


def write_mask(labels: NDArray[np.uint8], image: Image, path: str | Path, *, source: Path | None = None) -> None:
    """Write a mask.

    Parameters
    ----------
    labels : ndarray of uint8 [x, y, z]
        On the voxels of ``image``, as read.
    image : Image
        A volume.
    path : path
        ``.nii`` or ``.nii.gz``.
    source : Path or None
        The NIfTI file that the image was read from: the mask gets the order of its axes and all that its header says
        of their place, so that any reader lays the two on each other. Without it the mask lies as the image does,
        in RAS+.

    Raises
    ------
    DataError
        Where the mask is not on the image's voxels.

    Examples
    --------
    >>> import tempfile
    >>> from medtransfer.image import Geometry
    >>> from medtransfer.io import read
    >>> image = Image(np.zeros((2, 3, 4)), Geometry.from_affine(np.diag([1.0, 2, 3, 1])))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mask(np.ones((2, 3, 4), np.uint8), image, folder + "/mask.nii.gz")
    ...     int(read(folder + "/mask.nii.gz", labels=True).array.sum())
    24
    """
    import nibabel

    affine = image.geometry.affine
    if affine is None or labels.shape != image.spatial_shape:
        got = f"mask {labels.shape}, {image.kind} {image.spatial_shape}"
        raise DataError("the mask is not on the voxels of a volume", got=got)
    stored: NDArray[np.uint8] = labels.astype(np.uint8, copy=False)
    header: Any = None
    if source is not None and is_nifti(source):
        found = read_nifti_header(source)
        shape = (*found.shape, 1, 1)[:3]
        on_disk = isinstance(labels, np.memmap)
        stored, affine = scratch(shape, np.uint8) if on_disk else np.zeros(shape, np.uint8), found.affine
        turned, _ = canonical(stored, affine)  # a view
        if turned.shape != labels.shape:
            raise DataError(
                "the mask is not on the voxels of its source", got=f"mask {labels.shape}, file {turned.shape}"
            )
        turned[...] = labels
        header = nibabel.load(source).header  # type: ignore[attr-defined]
    if header is not None and (header["pixdim"][1:4] > 0).all():
        written = nibabel.Nifti1Image(stored, None)  # type: ignore[attr-defined, no-untyped-call]
        for field in _PLACE:
            written.header[field] = header[field]
        written.header["pixdim"][:4] = header["pixdim"][:4]
    else:
        written = nibabel.Nifti1Image(stored, affine)  # type: ignore[attr-defined, no-untyped-call]
        written.header.set_xyzt_units("mm")
        written.set_sform(affine, code=1)  # scanner coordinates
        _set_qform(written, affine)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(written, path)  # type: ignore[attr-defined]


def _set_qform(written: object, affine: NDArray[np.float64]) -> None:
    """A quaternion holds no shear: where there is some, the sform alone speaks."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(columns.T @ columns - np.eye(3)).max() > 1e-4
    written.set_qform(affine, code=0 if sheared else 1, strip_shears=True)  # type: ignore[attr-defined]
